"""Where the autoencoder's pictures come from: scenes of emoji, or a folder of pictures; and crops of them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from weights_tools.training import layouts
from weights_tools.training.emoji import EmojiSet

# Chances of the layouts; counts and sizes need little, their parts are in the others.
_CHANCES = {"single": 0.45, "colour": 0.25, "beside": 0.12, "above": 0.06, "larger": 0.04, "large": 0.03, "small": 0.05}
_COLOURED = 0.3  # of scenes that are not already one emoji on a colour
_SHOWN = 64
_CELL = 8

Picture = tuple[NDArray[np.uint8], NDArray[np.bool_]]


class Source(Protocol):
    """Pictures of one size."""

    def draw(self, random: np.random.Generator) -> Picture:
        """A random picture, (size, size, 3) uint8, and where it shows more than background, (size, size)."""

    def shown(self) -> NDArray[np.uint8]:
        """Some pictures, always the same, to measure on: (n, size, size, 3)."""


class Emoji:
    """Scenes that are not held out; those to measure on are single emoji on white."""

    def __init__(self, emoji: EmojiSet, size: int) -> None:
        self._emoji, self._size = emoji, size

    def draw(self, random: np.random.Generator) -> Picture:
        scene = self._scene(random)
        picture = layouts.draw(self._emoji, scene, self._size)
        red, green, blue = (picture[..., channel] != level for channel, level in enumerate(scene.background))
        return picture, red | green | blue

    def shown(self) -> NDArray[np.uint8]:
        indices = range(0, len(self._emoji), max(1, len(self._emoji) // _SHOWN))
        return np.stack([layouts.draw(self._emoji, layouts.single(index), self._size) for index in indices])

    def _scene(self, random: np.random.Generator) -> layouts.Scene:
        while True:
            layout = str(random.choice(list(_CHANCES), p=list(_CHANCES.values())))
            places = len(layouts.PLACES[layout])
            is_coloured = layout == "colour" or (layout != "single" and random.random() < _COLOURED)
            colour = str(random.choice(list(layouts.COLOURS))) if is_coloured else None
            scene = layouts.Scene(layout, tuple(random.integers(len(self._emoji), size=places).tolist()), colour)
            if not layouts.is_held_out(self._emoji, scene):
                return scene


class Pictures:
    """Given pictures (n, size, size, 3), of which nothing is known to be background."""

    def __init__(self, pictures: NDArray[np.uint8]) -> None:
        self._pictures = pictures

    def draw(self, random: np.random.Generator) -> Picture:
        picture = self._pictures[random.integers(len(self._pictures))]
        return picture, np.ones(picture.shape[:2], np.bool_)

    def shown(self) -> NDArray[np.uint8]:
        return self._pictures[:_SHOWN]


def batch(
    source: Source, random: np.random.Generator, count: int, size: int, crop: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Random pictures (count, size, size, 3), or crops of them around content, aligned to latent cells.

    Also where they show more than background: (count, 1, size, size), 0 or 1.
    """
    side = crop or size
    pictures = np.empty((count, side, side, 3), np.uint8)
    foreground = np.empty((count, 1, side, side), np.float32)
    for index in range(count):
        picture, content = source.draw(random)
        top, left = _crop_corner(content, random, side)
        here = (slice(top, top + side), slice(left, left + side))
        pictures[index], foreground[index, 0] = picture[here], content[here]
    return pictures, foreground


def _crop_corner(content: NDArray[np.bool_], random: np.random.Generator, side: int) -> tuple[int, int]:
    """Where a crop begins whose middle is near a random pixel of content."""
    size = len(content)
    places = np.flatnonzero(content)
    if side == size or not len(places):
        return 0, 0
    row, column = divmod(int(random.choice(places)), size)
    corner = [_CELL * round((middle - side / 2) / _CELL) for middle in (row, column)]
    return min(max(corner[0], 0), size - side), min(max(corner[1], 0), size - side)
