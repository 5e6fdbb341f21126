"""Token ids against a golden list (made by tests/oracle/test_tokenizer_oracle.py), and vocabularies that are wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mdrt
from mdrt import Graph, _core
from mdrt.bundle import write_bundle
from weights_tools.vocabulary import read_vocabulary

DATA = Path(__file__).parent / "data"
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]
SMALL = [*SPECIAL, "a", "b", "a</w>", "b</w>", "ab", "ab</w>", "aa", "aa</w>", "aaaa"]
SMALL_MERGES = [(2, 5), (2, 2), (8, 8), (2, 4)]


def make_model(tokens: Sequence[str], merges: Sequence[tuple[int, int]], **changes: Any) -> Any:
    graph = Graph()
    graph.output(graph.add("silu", [graph.input("x", ["batch", 16])], name="silu"), "y")
    tokenizer = {"vocab_size": len(tokens), "num_merges": len(merges), "model_max_length": 8}
    tokenizer |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "unk_token_id": 1, **changes}
    bundle = write_bundle(
        None,
        {"silu": graph},
        {"silu": {}},
        tokenizer=tokenizer,
        vocabulary="".join(f"{token}\n" for token in tokens).encode(),
        merges=np.array(merges, np.int32).reshape(-1, 2),
    )
    return _core.Model.from_buffer(bundle)


@pytest.fixture(scope="module")
def micro() -> Any:
    vocabulary = read_vocabulary(DATA / "micro-a" / "tokenizer", 24)
    return make_model(vocabulary.tokens, vocabulary.merges, model_max_length=vocabulary.model_max_length)


def test_golden(micro: Any) -> None:
    golden = json.loads((DATA / "tokenizer_golden.json").read_text())
    assert len(golden) > 200
    wrong = [(text, ids, got) for text, ids in golden if (got := micro.tokenize(text, padded=False)) != ids]
    assert not wrong


def test_padding_and_truncation(micro: Any) -> None:
    assert micro.tokenize("", padded=True) == [0] + [1] * 23
    for text in ("tiger", "tiger on a blue background with a " * 5):
        ids, padded = micro.tokenize(text, padded=False), micro.tokenize(text, padded=True)
        assert len(padded) == 24
        assert padded == ([*ids[:23], 1] if len(ids) > 24 else ids + [1] * (24 - len(ids)))


def test_pad_token_of_its_own() -> None:
    model = make_model(SMALL, SMALL_MERGES, pad_token_id=2)
    assert model.tokenize("b", padded=True) == [0, 5, 1, 2, 2, 2, 2, 2]
    assert model.tokenize("ba", padded=False) == [0, 5, 2, 1]    # and its text is special too


def test_best_rank_first_then_leftmost() -> None:
    model = make_model(SMALL, SMALL_MERGES)
    assert model.tokenize("ab", padded=False) == [0, 7, 1]
    assert model.tokenize("aaab", padded=False) == [0, 8, 7, 1]
    assert model.tokenize("aaaaa", padded=False) == [0, 10, 4, 1]
    assert model.tokenize("aaaz", padded=False) == [0, 8, 2, 1, 1]
    assert make_model(SMALL, []).tokenize("ab", padded=False) == [0, 2, 5, 1]


def test_of_equal_merges_the_last_counts() -> None:
    tokens = [*SPECIAL, "a", "b", "c</w>", "ab", "bc</w>"]
    assert make_model(tokens, [(2, 3), (3, 4)]).tokenize("abc", padded=False) == [0, 5, 4, 1]
    assert make_model(tokens, [(2, 3), (3, 4), (2, 3)]).tokenize("abc", padded=False) == [0, 2, 6, 1]


def test_unknown_symbols_become_the_unknown_token() -> None:
    model = make_model([*SMALL, "?"], SMALL_MERGES, unk_token_id=11)
    assert model.tokenize("a z\u00e9 b", padded=False) == [0, 4, 11, 11, 11, 5, 1]


def test_one_long_word(micro: Any) -> None:
    """A quadratic merge would take minutes here."""
    ids = micro.tokenize("a" * 1_000_000, padded=False)
    assert len(ids) > 2 and len(micro.tokenize("a" * 1_000_000, padded=True)) == 24
    assert micro.tokenize("a" * 4096, padded=False)[:100] == ids[:100]
    marks = "e" + "\u0301\u0323" * 100_000
    assert len(micro.tokenize(marks, padded=False)) > 200_000


def test_text_that_is_refused(micro: Any) -> None:
    with pytest.raises(mdrt.InvalidArgumentError, match="1048577 bytes"):
        micro.tokenize("a" * (2**20 + 1))
    assert micro.tokenize("a\0b", padded=False)[-1] == 1


def colliding_tokens(count: int) -> list[str]:
    """Different texts of equal polynomial hash modulo 2^64, whatever the (odd) base: made of Thue and Morse's words."""
    blocks = ["a", "b"]
    for _ in range(10):
        blocks = [blocks[0] + blocks[1], blocks[1] + blocks[0]]
    return ["".join(blocks[i >> k & 1] for k in range(10)) for i in range(count)]


BAD_TABLES: dict[str, tuple[list[str], list[tuple[int, int]], dict[str, Any]]] = {
    "tokens 2 and 5 are equal": ([*SPECIAL, "a", "b", "c", "a"], [], {}),
    "empty": ([*SPECIAL, "", "b"], [], {}),
    "merges": (SMALL, [(2, 5)], {"num_merges": 9}),
    "vocab_size": (SMALL, [], {"vocab_size": len(SMALL) + 1}),
    "vocab_size|tokens": (SMALL, [], {"vocab_size": len(SMALL) - 1}),
    "no token of the vocabulary": (SMALL, [(5, 2)], {}),
    "merges?.*(11|0, 11)": (SMALL, [(2, len(SMALL))], {}),
    "merges?.*-1": (SMALL, [(-1, 2)], {}),
    "bos_token_id": (SMALL, [], {"bos_token_id": len(SMALL)}),
    "unk_token_id": (SMALL, [], {"unk_token_id": -1}),
    "model_max_length": (SMALL, [], {"model_max_length": 1}),
    "300 bytes": ([*SPECIAL, "x" * 300], [], {"pad_token_id": 2}),
    "cannot be indexed": ([*SPECIAL, *colliding_tokens(600)], [], {}),
}


@pytest.mark.parametrize("message", BAD_TABLES)
def test_bad_tables(message: str) -> None:
    tokens, merges, changes = BAD_TABLES[message]
    with pytest.raises(mdrt.BundleError, match=message):
        make_model(tokens, merges, **changes).tokenize("ab")
