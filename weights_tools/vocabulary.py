"""Reads the vocabulary of a CLIP tokenizer (vocab.json and merges.txt, or tokenizer.json) into the form of bundles."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdrt.errors import ConversionError
from weights_tools.checkpoint import read_json

_DEFAULTS = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
}
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")


@dataclass(frozen=True)
class Vocabulary:
    """Tokens in the order of their ids, in CLIP's byte-to-unicode spelling; merges as pairs of ids, best first."""

    tokens: list[str]
    merges: list[tuple[int, int]]
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    unk_token_id: int
    model_max_length: int


def read_vocabulary(folder: Path, max_length: int) -> Vocabulary:
    """The tokenizer in `folder`, its length at most `max_length` ids (the text encoder's positions).

    Raises:
        ConversionError: missing files, ids with holes, a merge of unknown tokens, or another kind of tokenizer.
    """
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if settings.get("tokenizer_class", _CLASSES[0]) not in _CLASSES:
        raise ConversionError(f"{folder}: tokenizer_class {settings['tokenizer_class']!r} is not {_CLASSES[0]}")
    ids, merges = _read_files(folder)
    tokens = sorted(ids, key=ids.__getitem__)
    if [ids[token] for token in tokens] != list(range(len(tokens))):
        raise ConversionError(
            f"{folder}: the ids of the {len(tokens)} tokens are not 0 to {len(tokens) - 1} without hole"
        )
    special = _special_tokens(folder, settings, ids)
    length = settings.get("model_max_length", max_length)
    if not isinstance(length, (int, float)) or length < 2:
        raise ConversionError(f"{folder}: model_max_length is {length!r}; it must be a number from 2")
    return Vocabulary(tokens, _merge_ids(folder, ids, merges), **special, model_max_length=int(min(length, max_length)))


def byte_symbols() -> list[str]:
    """CLIP's (GPT-2's) spelling of each byte: those that print stand for themselves, the others come from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def _read_files(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        ids = read_json(folder / "vocab.json")
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
        pairs: Iterable[Any] = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    elif (folder / "tokenizer.json").is_file():
        document = read_json(folder / "tokenizer.json")
        model = document.get("model")
        if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
            raise ConversionError(f"{folder}/tokenizer.json: model.vocab is missing")
        added = document.get("added_tokens", [])
        ids = {**model["vocab"], **{entry["content"]: entry["id"] for entry in added}}
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model.get("merges", [])]
    else:
        raise ConversionError(f"{folder} holds neither vocab.json with merges.txt nor tokenizer.json")
    merges = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise ConversionError(f"{folder}: the merge {pair!r} is not a pair of tokens")
        merges.append((pair[0], pair[1]))
    for token, number in ids.items():
        if not isinstance(number, int) or isinstance(number, bool) or not token or "\n" in token:
            raise ConversionError(f"{folder}: the token {token!r} with id {number!r} is not usable")
    return ids, merges


def _merge_ids(folder: Path, ids: Mapping[str, int], merges: list[tuple[str, str]]) -> list[tuple[int, int]]:
    """Of a pair that is listed twice the last place counts, as in transformers."""
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in ids:
                raise ConversionError(
                    f"{folder}: the merge {left!r} {right!r} needs the token {token!r}, which has no id"
                )
    last_first = dict.fromkeys(reversed(merges))
    return [(ids[left], ids[right]) for left, right in reversed(last_first)]


def _special_tokens(folder: Path, settings: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, int]:
    mapped = read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").is_file() else {}
    special = {}
    for key, default in _DEFAULTS.items():
        token = settings.get(key) or mapped.get(key) or default
        content = token.get("content") if isinstance(token, dict) else token
        if not isinstance(content, str) or content not in ids:
            raise ConversionError(f"{folder}: the {key} {content!r} is not in the vocabulary")
        special[f"{key}_id"] = ids[content]
    return special
