"""The stage `tokenizer`: a small byte-pair vocabulary in CLIP's format, trained on captions; and encoding with it.

Encoding here needs no package and takes the words of captions only; mdrt's own tokenizer takes all of Unicode.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import ConversionError, InvalidArgumentError
from mdrt.files import replacing
from weights_tools.training.captions import bare_keywords, keyword_wordings, wordings
from weights_tools.training.emoji import EmojiSet, read_training_emoji
from weights_tools.training.imagefolder import read_captions
from weights_tools.training.layouts import COLOURS, PLACES, Scene
from weights_tools.training.stage import Context
from weights_tools.vocabulary import byte_symbols, read_vocabulary

_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORD_END = "</w>"
# CLIP's split, for Python's `re`: letters, single digits, runs of anything else but blanks.
_SPLIT = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
_CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_PLAIN_TIMES = 3  # how often names count beside their wordings


@dataclass(frozen=True)
class TokenizerTraining:
    """`vocab_size` entries in all; captions have at most `length` ids, start and end included."""

    vocab_size: int = 2048
    length: int = 24
    concepts: tuple[str, ...] = ()
    images: str | None = None  # a folder of captioned pictures instead of emoji

    def __post_init__(self) -> None:
        if self.vocab_size < 514 or self.length < 2:
            raise ConversionError("vocab_size must be at least 514 (bytes and two special ones) and length at least 2")


class Tokenizer:
    """Ids of captions by the vocabulary in a folder.

    Raises:
        ConversionError: the folder holds no usable vocabulary.
    """

    def __init__(self, folder: Path) -> None:
        vocabulary = read_vocabulary(folder, 1 << 16)
        tokens = vocabulary.tokens
        self.length = vocabulary.model_max_length
        self.vocab_size = len(tokens)
        self._ids = {token: number for number, token in enumerate(tokens)}
        self._ranks = {(tokens[a], tokens[b]): rank for rank, (a, b) in enumerate(vocabulary.merges)}
        self._start, self._end = vocabulary.bos_token_id, vocabulary.eos_token_id
        self._pad, self._unknown = vocabulary.pad_token_id, vocabulary.unk_token_id
        self._symbols = byte_symbols()
        self._words: dict[str, list[int]] = {}

    def count(self, caption: str) -> int:
        """How many ids a caption has, start and end included, if nothing is cut off."""
        return 2 + sum(len(self._word(word)) for word in _SPLIT.findall(caption.lower()))

    def encode(self, captions: Sequence[str]) -> NDArray[np.int32]:
        """(n, length) int32: start, words, end, then the padding; what is too long loses its last words."""
        ids = np.full((len(captions), self.length), self._pad, np.int32)
        for row, caption in zip(ids, captions, strict=True):
            words = [number for word in _SPLIT.findall(caption.lower()) for number in self._word(word)]
            whole = [self._start, *words[: self.length - 2], self._end]
            row[: len(whole)] = whole
        return ids

    def _word(self, word: str) -> list[int]:
        """The ids of one word: its bytes, merged in the order of the ranks."""
        if word not in self._words:
            parts = [self._symbols[byte] for byte in word.encode()]
            parts[-1] += _WORD_END
            while len(parts) > 1:
                best = min(itertools.pairwise(parts), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
                if best not in self._ranks:
                    break
                parts = list(_merged(parts, best))
            self._words[word] = [self._ids.get(part, self._unknown) for part in parts]
        return self._words[word]


def run(context: Context) -> None:
    """Trains the vocabulary on all wordings of names and keywords, and writes the folder `tokenizer`."""
    try:
        import tokenizers
        from tokenizers import models, normalizers, pre_tokenizers, trainers
    except ImportError as error:
        raise InvalidArgumentError("this stage needs the package tokenizers: pip install 'mdrt[train]'") from error

    config = context.config(TokenizerTraining)
    if config.images:
        corpus: Iterator[str] = iter(read_captions(context.folder / config.images))
    else:
        corpus = _corpus(read_training_emoji(context.folder, config.concepts))
    model = models.BPE(unk_token=_END, end_of_word_suffix=_WORD_END, continuing_subword_prefix="")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(_CLIP_SPLIT), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[_START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix=_WORD_END,
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    _write(context.output, json.loads(tokenizer.to_str())["model"], config.length)
    context.say(f"{tokenizer.get_vocab_size()} tokens in {context.output}")


def _corpus(emoji: EmojiSet) -> Iterator[str]:
    """Every wording once with each emoji, names and keywords oftener, so that they become few tokens."""
    colours = list(COLOURS)
    for index, name in enumerate(emoji.names):
        yield from [name] * _PLAIN_TIMES
        yield from emoji.keywords[index]
        for number, layout in enumerate(PLACES):
            colour = colours[(index + number) % len(colours)] if layout == "colour" else None
            yield from wordings(emoji, Scene(layout, (index,) * len(PLACES[layout]), colour))
    for keyword in bare_keywords(emoji):
        yield from keyword_wordings(keyword)


def _merged(parts: Sequence[str], pair: tuple[str, str]) -> Iterator[str]:
    """The parts with each occurrence of a pair made one, from the left."""
    index = 0
    while index < len(parts):
        if tuple(parts[index : index + 2]) == pair:
            yield "".join(pair)
            index += 2
        else:
            yield parts[index]
            index += 1


def _write(folder: Path, model: Mapping[str, Any], length: int) -> None:
    """vocab.json, merges.txt and tokenizer_config.json, as transformers' CLIPTokenizer reads them."""
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": length,
        "do_lower_case": True,
        "bos_token": _START,
        **dict.fromkeys(("eos_token", "pad_token", "unk_token"), _END),
    }
    files = {
        "vocab.json": json.dumps(model["vocab"], ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]),
        "tokenizer_config.json": json.dumps(settings, indent=1),
    }
    for name, text in files.items():
        with replacing(folder / name) as file:
            file.write(f"{text}\n".encode())
