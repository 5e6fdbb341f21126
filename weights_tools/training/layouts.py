"""What true pictures look like: which emoji stands where and how large, on which colour, and what is held out.

Places are in pixels of a picture of 128 x 128, x to the right, y down. Nothing is random: a full caption determines
its picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weights_tools.training import heldout
from weights_tools.training.emoji import EmojiSet

SIZE = 128
COLOURS = {
    "red": (229, 57, 53),
    "orange": (251, 140, 0),
    "yellow": (253, 216, 53),
    "green": (67, 160, 71),
    "teal": (0, 150, 136),
    "blue": (30, 136, 229),
    "purple": (142, 36, 170),
    "pink": (244, 143, 177),
    "brown": (121, 85, 72),
    "gray": (158, 158, 158),
    "black": (20, 20, 20),
}
WHITE = (255, 255, 255)

Place = tuple[float, float, float]  # centre x, centre y, width
_LEFT, _RIGHT = (33, 64, 62), (95, 64, 62)
PLACES: dict[str, tuple[Place, ...]] = {
    "single": ((64, 64, 118),),
    "colour": ((64, 64, 106),),
    "large": ((64, 64, 150),),
    "small": ((64, 64, 62),),
    "beside": (_LEFT, _RIGHT),
    "above": ((64, 33, 62), (64, 95, 62)),
    "larger": ((45, 64, 86), (107, 86, 38)),
    "two": (_LEFT, _RIGHT),
    "three": ((33, 33, 62), (95, 33, 62), (64, 95, 62)),
    "four": ((33, 33, 62), (95, 33, 62), (33, 95, 62), (95, 95, 62)),
}
COUNTS = ("two", "three", "four")


@dataclass(frozen=True)
class Scene:
    """One true picture: a layout of `PLACES`, the emoji in its places (counts repeat one), a colour or white."""

    layout: str
    emoji: tuple[int, ...]
    colour: str | None = None

    def __post_init__(self) -> None:
        if len(self.emoji) != len(PLACES[self.layout]):
            raise ValueError(f"the layout {self.layout} has {len(PLACES[self.layout])} places, not {len(self.emoji)}")

    @property
    def background(self) -> tuple[int, int, int]:
        """Red, green, blue, 0 to 255."""
        return COLOURS[self.colour] if self.colour else WHITE


def single(emoji: int, colour: str | None = None) -> Scene:
    """One emoji, alone on white or a little smaller on a colour."""
    return Scene("colour" if colour else "single", (emoji,), colour)


def counted(count: str, emoji: int, colour: str | None = None) -> Scene:
    """The same emoji two to four times."""
    return Scene(count, (emoji,) * len(PLACES[count]), colour)


def draw(emoji: EmojiSet, scene: Scene, size: int = SIZE) -> NDArray[np.uint8]:
    """The picture of a scene: (size, size, 3) uint8, the same bytes as Pillow's `paste` gives."""
    picture = np.empty((size, size, 3), np.uint8)
    picture[:] = scene.background
    for index, (x, y, width) in zip(scene.emoji, PLACES[scene.layout], strict=True):
        scale = size / SIZE
        sprite = emoji.sprite(index, width * scale)
        paste(picture, sprite, int(x * scale - sprite.shape[1] / 2), int(y * scale - sprite.shape[0] / 2))
    return picture


def paste(picture: NDArray[np.uint8], sprite: NDArray[np.uint8], left: int, top: int) -> None:
    """Lays an RGBA sprite over a picture, in place; what falls outside is cut off."""
    rows = slice(max(0, top), min(picture.shape[0], top + sprite.shape[0]))
    columns = slice(max(0, left), min(picture.shape[1], left + sprite.shape[1]))
    part = sprite[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left].astype(np.uint16)
    alpha = part[..., 3:]
    blend = part[..., :3] * alpha + picture[rows, columns] * (255 - alpha) + np.uint16(128)
    picture[rows, columns] = ((blend >> 8) + blend) >> 8  # Pillow's division by 255; all of it fits into 16 bits


def is_held_out(emoji: EmojiSet, scene: Scene) -> bool:
    """Whether the rule keeps a scene from training; one emoji on white never is."""
    names = {emoji.names[index] for index in scene.emoji}
    if len(names) > 1:
        return heldout.is_held_out(heldout.key(names))
    return scene.colour is not None and heldout.is_held_out(heldout.key(names, scene.colour))
