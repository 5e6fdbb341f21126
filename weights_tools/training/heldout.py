"""Compositions that are never trained on: the rule, and the committed list of some, with which models are compared.

A composition's key is `name|colour` for one emoji on a colour, or two names sorted and joined by `&` for a pair. It is
held out if the SHA-256 of its key begins with a byte below 13, so anybody can draw fresh ones.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

_BYTES = 13  # of 256: 5 % of all compositions
_LISTED = 200  # of each kind
LIST = Path(__file__).with_name("held_out.txt")


def key(names: Iterable[str], colour: str | None = None) -> str:
    """The key of a composition: of one name and a colour, or of two names, whatever colour they stand on."""
    ordered = sorted(names)
    return "&".join(ordered) if len(ordered) > 1 else f"{ordered[0]}|{colour}"


def is_held_out(composition: str) -> bool:
    """Whether a key is never trained on."""
    return _digest(composition)[0] < _BYTES


def smallest(names: Sequence[str], colours: Iterable[str], count: int = _LISTED) -> list[str]:
    """The `count` keys of colours, then of pairs, whose digests are smallest: those of the committed list."""
    on_colours = (key([name], colour) for name in names for colour in colours)
    pairs = map(key, itertools.combinations(names, 2))
    return [*heapq.nsmallest(count, on_colours, _digest), *heapq.nsmallest(count, pairs, _digest)]


def read_list() -> list[str]:
    """The committed list: 200 keys of colours, then 200 of pairs."""
    return LIST.read_text(encoding="utf-8").splitlines()


def _digest(composition: str) -> bytes:
    return hashlib.sha256(composition.encode()).digest()
