"""Token ids against transformers' CLIPTokenizer.

Run as a program, it writes tests/data/tokenizer_golden.json, from which the plain tests work without transformers.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdrt import Graph, _core
from mdrt.bundle import write_bundle
from weights_tools.vocabulary import read_vocabulary

transformers = pytest.importorskip("transformers", reason="the oracle needs transformers")

pytestmark = pytest.mark.oracle

DATA = Path(__file__).parent.parent / "data"
MICRO = DATA / "micro-a" / "tokenizer"
CLIP = os.environ.get("MDRT_CLIP_TOKENIZER")
FOLDERS = [
    pytest.param(MICRO, id="micro"),
    pytest.param(
        Path(CLIP or "."),
        id="clip",
        marks=pytest.mark.skipif(not CLIP, reason="MDRT_CLIP_TOKENIZER names no folder with CLIP's own tokenizer"),
    ),
]
RANDOM_STRINGS = 20_000

SURROGATES = range(0xD800, 0xE000)
SCALARS = [code for code in range(0x110000) if code not in SURROGATES]
MARKS = [*range(0x300, 0x370), 0x0F71, 0x0F72, 0x3099, 0x1161, 0x11A8, 0x1DFA, 0x11930, 0x11935, 0x16FF0, 0x105D2]
# Blocks with letters that came after Unicode 15: 16.0 and 17.0, cased ones among them.
RECENT = [*range(0x1C80, 0x1C90), *range(0xA7C0, 0xA800), *range(0x105C0, 0x10600), *range(0x10D40, 0x10D90)]
RECENT += [*range(0x11380, 0x113E3), *range(0x16D40, 0x16D80), *range(0x16EA0, 0x16EE0), *range(0x2EBF0, 0x2EE5E, 7)]
SPACES = [9, 10, 11, 12, 13, 0x1C, 0x1F, 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200E), 0x2028, 0x2029, 0x202F]
SPACES += [0x205F, 0x2060, 0x3000, 0xFEFF]
PIECES = [
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'LL", "'\u017f", "''s", "\u2019s", "don't", "I'M", "'", "''"),
    *("<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|StartOfText|>", "<|endoftext", "|>", "<|", "<||>"),
    *("\u0130", "\u0130\u0323", "\u039f\u03a3", "\u00df", "\u1e9e", "\ufb01", "\u212b", "\u01c5", "\u0344"),
    *("\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1e9\U0001f1ea"),
    *("a tiger", "The", "background", " ", "  ", "\t\r\n", "123", "\u00bd", "\u2167", "_", "...", "!!", "\0"),
    *("\x7f", "-", "\u1e9b\u0323"),
]


def random_strings(rng: random.Random, count: int) -> Iterator[str]:
    """Strings of 1 to 40 pieces, each with its own mixture of kinds."""
    kinds = [
        lambda: chr(rng.choice(SCALARS)),
        lambda: chr(rng.randrange(0x250)),
        lambda: chr(rng.randrange(32, 127)),
        lambda: chr(rng.choice(MARKS)),
        lambda: chr(rng.choice(RECENT)),
        lambda: chr(rng.choice(SPACES)),
        lambda: chr(rng.choice((rng.randrange(0xAC00, 0xD7A4), rng.randrange(0x1100, 0x1200)))),
        lambda: chr(rng.randrange(0x250, 0x3100)),
        lambda: chr(rng.randrange(0x1F300, 0x1FB00)),
        lambda: rng.choice(PIECES),
    ]
    for _ in range(count):
        weights = [rng.random() ** 3 for _ in kinds]
        yield "".join(make() for make in rng.choices(kinds, weights, k=rng.choice((1, 2, 3, 5, 8, 13, 21, 40))))


def long_strings(rng: random.Random) -> list[str]:
    """About 10 KB each: one word, words, blanks, marks to be ordered, everything."""
    return [
        "a" * 10_240,
        "ab" * 5_120,
        "tiger on a blue background, " * 366,
        " " * 10_240,
        "<|endoftext|>" * 800,
        "e" + "\u0301" * 2_500 + "\u0323" * 2_500,
        "".join(chr(rng.choice(MARKS)) for _ in range(5_000)),
        "".join(chr(rng.choice(SCALARS)) for _ in range(3_000)),
        "\U0001f469\u200d" * 1_500,
        "1" * 10_240,
    ]


def native_model(folder: Path, max_length: int) -> Any:
    """A model that has only this tokenizer and a component without weights."""
    vocabulary = read_vocabulary(folder, max_length)
    graph = Graph()
    graph.output(graph.add("silu", [graph.input("x", ["batch", 16])], name="silu"), "y")
    names = ("model_max_length", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    document = {"vocab_size": len(vocabulary.tokens), "num_merges": len(vocabulary.merges)}
    return _core.Model.from_buffer(
        write_bundle(
            None,
            {"silu": graph},
            {"silu": {}},
            tokenizer={**document, **{name: getattr(vocabulary, name) for name in names}},
            vocabulary="".join(f"{token}\n" for token in vocabulary.tokens).encode(),
            merges=np.array(vocabulary.merges, np.int32),
        )
    )


@pytest.fixture(params=FOLDERS)
def folder(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def assert_equal_ids(folder: Path, texts: list[str]) -> None:
    reference = transformers.CLIPTokenizer.from_pretrained(folder)
    length = min(reference.model_max_length, 77)
    model = native_model(folder, length)
    plain = reference(texts)["input_ids"]
    padded = reference(texts, padding="max_length", truncation=True, max_length=length)["input_ids"]
    wrong = [
        ascii(text[:60])
        for text, ids, padded_ids in zip(texts, plain, padded, strict=True)
        if model.tokenize(text, padded=False) != ids or model.tokenize(text, padded=True) != padded_ids
    ]
    assert not wrong, f"{len(wrong)} of {len(texts)} differ, such as {wrong[:5]}"


def test_random_strings(folder: Path) -> None:
    assert_equal_ids(folder, ["", *PIECES, *random_strings(random.Random(20_260), RANDOM_STRINGS)])


def test_long_strings(folder: Path) -> None:
    assert_equal_ids(folder, long_strings(random.Random(5)))


def test_every_character_among_others(folder: Path) -> None:
    """The class of each character shows in how it joins a letter, a number and a mark."""
    assert_equal_ids(folder, [f"a{c}1{c}!{c}b'S" for c in map(chr, SCALARS[::37])])


def test_every_character_of_cases_and_compositions(folder: Path) -> None:
    from unicodedata import category, decomposition

    codes = [code for code in SCALARS if category(chr(code)) in ("Lu", "Lt", "Mn", "Mc") or code in RECENT]
    codes += [code for code in SCALARS if decomposition(chr(code))]
    texts = [f"{chr(code)}\u0323\u0301{chr(code)}" for code in codes]
    pairs = [decomposition(chr(code)) for code in SCALARS]
    texts += ["".join(chr(int(part, 16)) for part in pair.split()) for pair in pairs if pair and pair[0] != "<"]
    assert_equal_ids(folder, texts)


def test_pad_token_that_is_not_the_end_token(tmp_path: Path) -> None:
    """Then its text is special as well."""
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((MICRO / name).read_bytes())
    settings = json.loads((MICRO / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": "!"}))
    assert_equal_ids(tmp_path, ["a!b", "!!", "a ! <|endoftext|>!", *random_strings(random.Random(3), 500)])


def write_golden() -> None:
    """A few hundred strings with their ids, from the reference alone."""
    rng = random.Random(7)
    texts = ["", "tiger on a blue background", *PIECES, *(text for text in random_strings(rng, 250) if len(text) < 30)]
    ids = transformers.CLIPTokenizer.from_pretrained(MICRO)(texts)["input_ids"]
    rows = [json.dumps([text, row]) for text, row in zip(texts, ids, strict=True)]
    (DATA / "tokenizer_golden.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")


if __name__ == "__main__":
    write_golden()
