"""Which emoji a picture shows: of all emoji, the one whose true picture is nearest in a place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from weights_tools.training import layouts
from weights_tools.training.emoji import EmojiSet
from weights_tools.training.layouts import SIZE, Scene

# The places that are looked at, in pixels of a picture of 128 x 128: left, top, right, bottom.
_BOXES: dict[str, tuple[tuple[int, int, int, int], ...]] = {
    "single": ((0, 0, 128, 128),),
    "colour": ((0, 0, 128, 128),),
    "beside": ((2, 33, 64, 95), (64, 33, 126, 95)),
}
_CELLS = 24  # to which a place is reduced, each way
_BORDER = 6  # rows at the top and at the bottom that show the background
_NEAR = 40  # grey levels that its mean may be off


class Gallery:
    """The true pictures of all emoji in each place, made when first needed.

    Pictures are (n, size, size, 3) uint8. Two emoji with the same picture count as the first of them.
    """

    def __init__(self, emoji: EmojiSet, size: int = SIZE) -> None:
        self._emoji, self._size = emoji, size
        self._true: dict[tuple[str, str | None], list[NDArray[np.float64]]] = {}

    def nearest(self, pictures: NDArray[np.uint8], layout: str, colour: str | None = None) -> NDArray[np.intp]:
        """The emoji in each place of a layout, (n, places), if the background is `colour`.

        Compared by the sum of squared differences of 24 x 24 means.
        """
        found = []
        for place, true in enumerate(self._pictures(layout, colour)):
            shown = self._reduced(pictures, layout, place)
            distance = (true**2).sum(1) - 2 * shown @ true.T  # but for the same amount for all emoji
            found.append(distance.argmin(1))
        return np.stack(found, 1)

    def is_right(self, pictures: NDArray[np.uint8], scenes: Sequence[Scene]) -> NDArray[np.bool_]:
        """Whether each place shows its emoji and the border its colour; scenes are single, colour or beside."""
        right = np.empty(len(scenes), np.bool_)
        groups: dict[tuple[str, str | None], list[int]] = {}
        for index, scene in enumerate(scenes):
            groups.setdefault((scene.layout, scene.colour), []).append(index)
        for (layout, colour), here in groups.items():
            expected = [scenes[index].emoji for index in here]
            right[here] = (self.nearest(pictures[here], layout, colour) == expected).all(1)
            right[here] &= self._has_border(pictures[here], scenes[here[0]].background)
        return right

    def _has_border(self, pictures: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
        rows = _BORDER * self._size // SIZE
        border = np.concatenate([pictures[:, :rows], pictures[:, -rows:]], 1).mean((1, 2))
        return np.asarray(np.abs(border - colour).max(1) < _NEAR)

    def _pictures(self, layout: str, colour: str | None) -> list[NDArray[np.float64]]:
        key = (layout, colour)
        if key not in self._true:
            places = len(_BOXES[layout])
            scenes = [Scene(layout, (index,) * places, colour) for index in range(len(self._emoji))]
            drawn = np.stack([layouts.draw(self._emoji, scene, self._size) for scene in scenes])
            self._true[key] = [self._reduced(drawn, layout, place) for place in range(places)]
        return self._true[key]

    def _reduced(self, pictures: NDArray[np.uint8], layout: str, place: int) -> NDArray[np.float64]:
        """A place by area average in whole grey levels, (n, 24 * 24 * 3): exact, so that equal pictures are equal."""
        left, top, right, bottom = (side * self._size // SIZE for side in _BOXES[layout][place])
        size = (_CELLS, _CELLS)
        small = [
            Image.fromarray(picture[top:bottom, left:right]).resize(size, Image.Resampling.BOX) for picture in pictures
        ]
        return np.stack([np.asarray(picture, np.float64).ravel() for picture in small])


def share_of_members(shown: NDArray[np.intp], members: Sequence[int]) -> tuple[float, int]:
    """Of pictures of a keyword: the share that shows one of its emoji, and how many different ones are shown."""
    inside = np.isin(shown, members)
    return float(inside.mean()), len(set(shown[inside].tolist()))
