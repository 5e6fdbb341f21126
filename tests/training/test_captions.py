"""Captions, the tokenizer that reads them, and folders of captioned pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdrt import Graph, _core
from mdrt.bundle import write_bundle
from mdrt.errors import FileError
from weights_tools.training import layouts
from weights_tools.training.captions import bare_keywords, keyword_wordings, plural, with_article, wordings
from weights_tools.training.emoji import EmojiSet
from weights_tools.training.imagefolder import read_entries, read_pictures
from weights_tools.training.layouts import PLACES, Scene
from weights_tools.training.stage import Context
from weights_tools.training.tokenizer import Tokenizer, run
from weights_tools.vocabulary import read_vocabulary

MICRO = Path(__file__).parent.parent / "data" / "micro-a" / "tokenizer"


def all_captions(emoji: EmojiSet) -> list[str]:
    scenes = [
        Scene(layout, tuple((index + place) % len(emoji) for place in range(len(PLACES[layout]))), colour)
        for index in range(len(emoji))
        for layout in PLACES
        for colour in (None, "orange", "blue")
    ]
    captions = [caption for scene in scenes for caption in wordings(emoji, scene)]
    return captions + [caption for keyword in bare_keywords(emoji) for caption in keyword_wordings(keyword)]


def test_the_plain_caption_comes_first(emoji: EmojiSet) -> None:
    assert wordings(emoji, layouts.single(0))[0] == "tiger"
    assert wordings(emoji, layouts.single(7, "orange"))[0] == "orange on a orange background"
    assert wordings(emoji, Scene("beside", (0, 1)))[0] == "tiger and red apple"
    assert wordings(emoji, Scene("beside", (0, 1), "blue"))[0] == "tiger and red apple on a blue background"
    assert wordings(emoji, Scene("above", (0, 1)))[0] == "tiger above red apple"


def test_captions_say_what_they_show(emoji: EmojiSet) -> None:
    assert "an orange on a blue background" in wordings(emoji, layouts.single(7, "blue"))
    assert "orange in front of an orange background" in wordings(emoji, layouts.single(7, "orange"))
    assert "red apple to the right of tiger" in wordings(emoji, Scene("beside", (0, 1)))
    assert "a red apple under a tiger" in wordings(emoji, Scene("above", (0, 1)))
    assert "two tigers" in wordings(emoji, layouts.counted("two", 0))
    assert "a photograph of my tiger" in wordings(emoji, layouts.single(0))


def test_a_caption_determines_its_picture(emoji: EmojiSet) -> None:
    owners: dict[str, Scene] = {}
    for index in (0, 1, 2, 3):  # among them an eye and eyes
        for layout in ("single", "large", "small", "two", "three", "four"):
            scene = Scene(layout, (index,) * len(PLACES[layout]))
            for caption in wordings(emoji, scene):
                assert owners.setdefault(caption, scene) == scene, caption


def test_bare_keywords(emoji: EmojiSet) -> None:
    """`orange` is an emoji and a colour, `2:00` no word, `thing` has too few members."""
    assert bare_keywords(emoji) == {"animal": (0, 1, 2, 3, 4)}
    assert keyword_wordings("animal")[:3] == ["animal", "an animal", "a picture of an animal"]


@pytest.mark.parametrize(
    "one, many", [("tiger", "tigers"), ("eyes", "eyes"), ("watch", "watches"), ("cherry", "cherries"), ("key", "keys")]
)
def test_plural(one: str, many: str) -> None:
    assert plural(one) == many
    assert with_article(one) == f"{'an' if one == 'eyes' else 'a'} {one}"


def native(folder: Path) -> Any:
    """mdrt's own tokenizer of the vocabulary in a folder."""
    vocabulary = read_vocabulary(folder, 1 << 16)
    graph = Graph()
    graph.output(graph.add("silu", [graph.input("x", ["batch", 16])], name="silu"), "y")
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "model_max_length")
    settings = {"vocab_size": len(vocabulary.tokens), "num_merges": len(vocabulary.merges)}
    bundle = write_bundle(
        None,
        {"silu": graph},
        {"silu": {}},
        tokenizer=settings | {name: getattr(vocabulary, name) for name in names},
        vocabulary="".join(f"{token}\n" for token in vocabulary.tokens).encode(),
        merges=np.array(vocabulary.merges, np.int32).reshape(-1, 2),
    )
    return _core.Model.from_buffer(bundle)


def test_encoding_equals_mdrts(emoji: EmojiSet) -> None:
    tokenizer, model = Tokenizer(MICRO), native(MICRO)
    captions = ["", "piñata, 24 o'clock!", "mrs. claus " * 20, *all_captions(emoji)]
    for caption, ids in zip(captions, tokenizer.encode(captions).tolist(), strict=True):
        assert ids == model.tokenize(caption, padded=True), caption
        assert tokenizer.count(caption) == len(model.tokenize(caption, padded=False))


def test_trained_tokenizer(emoji: EmojiSet, folder: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install '.[train]'")
    run(Context("tokenizer", {"vocab_size": 600, "length": 20}, folder, say=lambda _: None))
    tokenizer, model = Tokenizer(folder / "tokenizer"), native(folder / "tokenizer")
    assert tokenizer.vocab_size <= 600 and tokenizer.length == 20
    assert tokenizer.count("tiger") == 3
    for caption in all_captions(emoji):
        assert tokenizer.encode([caption])[0].tolist() == model.tokenize(caption, padded=True)


def test_folder_of_pictures(tmp_path: Path) -> None:
    wide = np.zeros((10, 30, 4), np.uint8)
    wide[:, 10:20] = (200, 100, 50, 255)
    Image.fromarray(wide, "RGBA").save(tmp_path / "wide.png")
    Image.new("RGBA", (5, 5)).save(tmp_path / "clear.png")
    lines = [{"file_name": "wide.png", "text": "my stripe"}, {"file_name": "clear.png", "text": "nothing"}]
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, lines)))
    assert [text for _, text in read_entries(tmp_path)] == ["my stripe", "nothing"]
    stripe, clear = read_pictures(tmp_path, 10)
    assert stripe.shape == (10, 10, 3) and (stripe == (200, 100, 50)).all() and (clear == 255).all()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "is empty"),
        ('{"file_name": "a.png"}', "line 1: no object with file_name and text"),
        ('{"file_name": "a.png", "text": "a"}\nnonsense', "line 2"),
        ("[1]", "line 1"),
    ],
)
def test_wrong_metadata(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(FileError, match=message):
        read_entries(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"cannot read .*metadata.jsonl"):
        read_entries(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}')
    with pytest.raises(FileError, match=r"a.png is no readable picture"):
        list(read_pictures(tmp_path, 8))
