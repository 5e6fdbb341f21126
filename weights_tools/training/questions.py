"""What models are asked: every emoji, held-out colours and pairs, bare keywords, and 32 prompts for the eye."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weights_tools.training import heldout, layouts
from weights_tools.training.captions import bare_keywords, keyword_wordings, wordings
from weights_tools.training.emoji import EmojiSet
from weights_tools.training.layouts import COLOURS, Scene

SHEET_SIZE = 32


@dataclass(frozen=True)
class Questions:
    """Full captions of scenes by kind (single, colours, pairs), and bare keywords, each with its emoji and prompt.

    Indices are those of the set of all emoji.
    """

    scenes: dict[str, list[Scene]]
    prompts: dict[str, list[str]]
    keywords: dict[str, tuple[int, ...]]
    keyword_prompts: dict[str, str]


def ask(emoji: EmojiSet, concepts: Sequence[str], compositions: int, keywords: int) -> Questions:
    """Questions about the emoji with the names `concepts`, or about all if there are none.

    Args:
        compositions: how many held-out colours, and as many pairs: those with the smallest digests, so for all emoji
            and 200 the committed list.
        keywords: how many bare keywords at most, again by digest.

    Raises:
        InvalidArgumentError: a name that no emoji has.
    """
    taught = emoji.subset(concepts) if concepts else emoji
    places = {name: index for index, name in enumerate(emoji.names)}
    scenes: dict[str, list[Scene]] = {"single": [layouts.single(places[name]) for name in taught.names]}
    scenes |= {"colours": [], "pairs": []}
    for composition in heldout.smallest(taught.names, COLOURS, compositions):
        if not heldout.is_held_out(composition):
            continue  # few concepts have few compositions
        names, _, colour = composition.partition("|")
        if colour:
            scenes["colours"].append(layouts.single(places[names], colour))
        else:
            left, _, right = names.partition("&")
            scenes["pairs"].append(Scene("beside", (places[left], places[right])))
    prompts = {kind: [wordings(emoji, scene)[0] for scene in asked] for kind, asked in scenes.items()}
    known = bare_keywords(taught)
    chosen = sorted(known, key=_digest)[:keywords]
    members = {
        word: tuple(index for index, words in enumerate(emoji.keywords) if word in words) for word in sorted(chosen)
    }
    return Questions(scenes, prompts, members, {word: keyword_wordings(word)[1] for word in members})


def sheet(questions: Questions) -> tuple[list[str], list[Scene]]:
    """Prompts to look at, half of them single, a quarter held-out colours and held-out pairs each, nothing picked."""
    counts = {"single": SHEET_SIZE // 2, "colours": SHEET_SIZE // 4, "pairs": SHEET_SIZE // 4}
    prompts: list[str] = []
    scenes: list[Scene] = []
    for kind, count in counts.items():
        order = sorted(range(len(questions.prompts[kind])), key=lambda index: _digest(questions.prompts[kind][index]))
        prompts += [questions.prompts[kind][index] for index in order[:count]]
        scenes += [questions.scenes[kind][index] for index in order[:count]]
    return prompts, scenes


def start_noise(prompt: str, count: int, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Noise (count, *shape) that follows from the prompt and a seed, the same for every model and program."""
    words = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "little")
    return np.random.default_rng([seed, words]).standard_normal((count, *shape), dtype=np.float32)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
