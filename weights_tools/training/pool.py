"""The pool of training latents: every picture of the training set once, with all that it may be called.

A caption that several pictures have leaves the choice to the noise: of these pictures the one is drawn whose means over
all pixels differ from those of all of them in the direction of the noise's means. So noise and caption determine the
picture, and a model learns in one step to draw one of them, not their average. The idea is that of Li et al.,
"Immiscible Diffusion", arXiv 2406.12303; means are few and easily seen in noise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import FileError, InvalidArgumentError
from mdrt.files import replacing

# What rows show; `image` are pictures of a folder of one's own.
KINDS = ("single", "colour", "beside", "above", "rest", "keyword", "image")
_OPEN_KINDS = ("keyword", "image")  # of which several pictures may have one caption
FILE_NAME = "latents.npz"
_ARRAYS = ("latents", "picture", "kind", "ids", "weight")


class Pool:
    """Pictures as latents, and rows, each of which calls one picture by one caption.

    Args:
        latents: (pictures, channels, height, width) float16, of about unit variance.
        picture: (rows,) the picture that a row calls.
        kind: (rows,) index into `KINDS`.
        ids: (rows, length) uint16, the caption.
        weight: (rows,) how often a row is drawn among those of its kind.
    """

    def __init__(
        self,
        latents: NDArray[np.float16],
        picture: NDArray[np.int32],
        kind: NDArray[np.uint8],
        ids: NDArray[np.uint16],
        weight: NDArray[np.float32],
    ) -> None:
        self.latents, self.picture, self.kind, self.ids, self.weight = latents, picture, kind, ids, weight
        self._rows = {name: np.flatnonzero(kind == index) for index, name in enumerate(KINDS)}
        self._sums = {name: np.cumsum(weight[rows], dtype=np.float64) for name, rows in self._rows.items()}
        self._find_choices()

    def _find_choices(self) -> None:
        """Which pictures a row leaves to choose from: a part of `members`, each with a direction of the noise's means.

        First come all pictures, each the only choice of the rows that call it; then those of captions that have many.
        """
        rows = np.concatenate([self._rows[name] for name in _OPEN_KINDS])
        _, groups = np.unique(self.ids[rows], axis=0, return_inverse=True)
        pairs = np.unique(np.stack([groups.ravel(), self.picture[rows]], 1), axis=0)
        sizes = np.bincount(pairs[:, 0])
        starts = len(self.latents) + np.cumsum(sizes) - sizes
        self.members = np.concatenate([np.arange(len(self.latents)), pairs[:, 1]])
        self._start, self._size = self.picture.astype(np.intp), np.ones(len(self.kind), np.intp)
        self._start[rows], self._size[rows] = starts[groups.ravel()], sizes[groups.ravel()]
        means = self.latents.mean((2, 3), dtype=np.float32)[pairs[:, 1]]
        sums = np.zeros((len(sizes), means.shape[1]), np.float32)
        np.add.at(sums, pairs[:, 0], means)
        means -= (sums / np.maximum(sizes, 1)[:, None])[pairs[:, 0]]
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-6)
        self.directions = np.concatenate([np.zeros((len(self.latents), means.shape[1]), np.float32), means])

    def sample(self, random: np.random.Generator, count: int, chances: Mapping[str, float]) -> NDArray[np.intp]:
        """Random rows, (count,).

        `chances` says how often each kind is drawn, in any unit; kinds without rows are passed over.

        Raises:
            InvalidArgumentError: an unknown kind, or none with rows.
        """
        for name in chances:
            if name not in KINDS:
                raise InvalidArgumentError(f"there is no kind {name!r} of pictures; there are {', '.join(KINDS)}")
        kinds = [name for name, chance in chances.items() if chance > 0 and len(self._rows[name])]
        if not kinds:
            raise InvalidArgumentError(f"the pool has no pictures of the kinds {', '.join(chances)}")
        shares = np.array([chances[name] for name in kinds], dtype=np.float64)
        drawn = random.choice(len(kinds), size=count, p=shares / shares.sum())
        places = random.random(count)
        rows = np.empty(count, np.intp)
        for index, name in enumerate(kinds):
            here = drawn == index
            sums = self._sums[name]
            found = np.searchsorted(sums, places[here] * sums[-1], side="right")
            rows[here] = self._rows[name][np.minimum(found, len(sums) - 1)]
        return rows

    def choices(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Places in `members` and `directions` of the pictures that rows may show, (n, most); few are repeated."""
        size = self._size[rows]
        places = np.remainder(np.arange(size.max(), dtype=np.intp), size[:, None], dtype=np.intp)
        return np.asarray(self._start[rows, None] + places)

    def save(self, path: Path) -> None:
        """Writes the pool, an .npz of the arrays named above."""
        with replacing(path) as file:
            np.savez(file, **{name: getattr(self, name) for name in _ARRAYS})


def read_pool(path: Path) -> Pool:
    """Reads what `Pool.save` wrote.

    Raises:
        FileError: the file is missing or is no such pool.
    """
    try:
        with np.load(path) as arrays:
            return Pool(**{name: arrays[name] for name in _ARRAYS})
    except (OSError, ValueError, KeyError) as error:
        raise FileError(f"{path} is no pool of latents; make one with the stage latents ({error})") from error
