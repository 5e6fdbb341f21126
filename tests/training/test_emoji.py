"""True pictures, held-out compositions, and the pack."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mdrt.errors import FileError, InvalidArgumentError
from weights_tools.training import heldout, layouts
from weights_tools.training.emoji import SPRITE_SIZE, EmojiSet, _members, read_emoji
from weights_tools.training.layouts import COLOURS, PLACES, Scene


def pasted(emoji: EmojiSet, scene: Scene, size: int) -> Image.Image:
    """The same picture by Pillow alone."""
    picture = Image.new("RGB", (size, size), scene.background)
    for index, (x, y, width) in zip(scene.emoji, PLACES[scene.layout], strict=True):
        scale = width * size / 128 / SPRITE_SIZE[0]
        shape = (int(SPRITE_SIZE[0] * scale), int(SPRITE_SIZE[1] * scale))
        sprite = emoji.image(index).resize(shape, Image.Resampling.LANCZOS)
        corner = (int(x * size / 128 - sprite.width / 2), int(y * size / 128 - sprite.height / 2))
        picture.paste(sprite, corner, sprite)
    return picture


@pytest.mark.parametrize("size", [128, 64])
@pytest.mark.parametrize("colour", [None, "teal"])
@pytest.mark.parametrize("layout", PLACES)
def test_pictures_are_as_pillow_pastes_them(emoji: EmojiSet, layout: str, colour: str | None, size: int) -> None:
    scene = Scene(layout, tuple(range(len(PLACES[layout]))), colour)
    assert np.array_equal(layouts.draw(emoji, scene, size), np.asarray(pasted(emoji, scene, size)))


def test_golden_pictures(noto: EmojiSet) -> None:
    """Bytes of the definition with which the first models were measured."""
    assert len(noto) == len(set(noto.names)) == 1580
    singles = hashlib.sha256(b"".join(layouts.draw(noto, layouts.single(index)).tobytes() for index in range(1580)))
    assert singles.hexdigest() == "26147258f590740ba2ad7f686ae4a9173b0bc61bdcda207b0787fb3e40cd9fe2"
    for names, colour, digest in [
        (["tiger"], "blue", "84e4619df691b9b9"),
        (["red apple"], "orange", "1184cc6af21719d5"),
        (["snowflake", "red apple"], None, "0a1475fdd834d86c"),
        (["tiger", "kitchen knife"], "black", "b73f276d09d364c2"),
    ]:
        indices = tuple(noto.names.index(name) for name in names)
        scene = layouts.single(indices[0], colour) if len(indices) == 1 else Scene("beside", indices, colour)
        assert hashlib.sha256(layouts.draw(noto, scene).tobytes()).hexdigest()[:16] == digest


def test_places_must_fit_the_layout() -> None:
    with pytest.raises(ValueError, match="beside has 2 places"):
        Scene("beside", (1,))


def test_held_out_list_is_reproduced(noto: EmojiSet) -> None:
    assert heldout.read_list() == heldout.smallest(noto.names, COLOURS)


def test_held_out_rule(emoji: EmojiSet) -> None:
    listed = heldout.read_list()
    assert len(set(listed)) == 400 and all(map(heldout.is_held_out, listed))
    keys = [f"{name}|{colour}" for name in emoji.names for colour in COLOURS]
    assert 0 < sum(map(heldout.is_held_out, keys)) < len(keys) / 5
    for key in keys:
        name, colour = key.split("|")
        scene = layouts.single(emoji.names.index(name), colour)
        first_byte = hashlib.sha256(key.encode()).digest()[0]
        assert layouts.is_held_out(emoji, scene) == (first_byte < 13)
        assert layouts.is_held_out(emoji, layouts.counted("two", scene.emoji[0], colour)) == (first_byte < 13)


def test_pairs_are_held_out_in_any_order_and_on_any_colour(emoji: EmojiSet) -> None:
    held = [
        (a, b) for a in range(len(emoji)) for b in range(a) if layouts.is_held_out(emoji, Scene("beside", (a, b)))
    ]
    assert held
    for a, b in held:
        assert layouts.is_held_out(emoji, Scene("above", (b, a), "red"))
    assert not any(layouts.is_held_out(emoji, layouts.single(index)) for index in range(len(emoji)))


def test_pack_is_read_as_it_was_written(emoji: EmojiSet, folder: Path) -> None:
    packed = read_emoji(folder / "emoji.npz")
    assert (packed.names, packed.keywords, packed.pngs) == (emoji.names, emoji.keywords, emoji.pngs)
    some = packed.subset(["eyes", "tiger"])
    assert some.names == ("eyes", "tiger") and some.pngs == (emoji.pngs[3], emoji.pngs[0])
    with pytest.raises(InvalidArgumentError, match="no emoji called 'unicorn'"):
        packed.subset(["unicorn"])


def test_what_is_no_pack(tmp_path: Path) -> None:
    (tmp_path / "emoji.npz").write_bytes(b"no zip")
    for name in ("emoji.npz", "missing.npz"):
        with pytest.raises(FileError, match="not a pack of emoji"):
            read_emoji(tmp_path / name)


def test_sets_of_characters() -> None:
    assert list(_members("[ab-d{xy}\ufe0fe]")) == ["a", "b", "c", "d", "xy", "e"]
