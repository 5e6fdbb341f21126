"""The pool of training latents: every picture of the training set once, with all that it may be called.

A caption that several pictures have leaves the choice to the noise: of these pictures the one is drawn whose means over
all pixels are most like those of the noise. So noise and caption determine the picture, and a model learns in one step
to draw one of them, not their average. The idea is that of Li et al., "Immiscible Diffusion", arXiv 2406.12303; means
are few and easily seen in noise.
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
        self._group = np.full(len(kind), -1)
        rows = np.concatenate([self._rows[name] for name in _OPEN_KINDS])
        _, groups = np.unique(ids[rows], axis=0, return_inverse=True)
        self._group[rows] = groups = groups.ravel()
        sorted_pictures = picture[rows[np.argsort(groups)]]
        self._members = [np.unique(part) for part in np.split(sorted_pictures, np.cumsum(np.bincount(groups)))]

    def sample(
        self, random: np.random.Generator, count: int, chances: Mapping[str, float]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """Latents and noise, (count, channels, height, width) each, and ids (count, length) of random rows.

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
        noise = random.standard_normal((count, *self.latents.shape[1:]), np.float32)
        pictures = self.picture[rows]
        for place in np.flatnonzero(self._group[rows] >= 0):
            pictures[place] = self._nearest(self._members[self._group[rows[place]]], noise[place])
        return self.latents[pictures].astype(np.float32), noise, self.ids[rows].astype(np.int64)

    def _nearest(self, pictures: NDArray[np.int32], noise: NDArray[np.float32]) -> int:
        """The picture whose channels' means differ from those of all pictures in the direction of the noise's means."""
        means = self.latents[pictures].mean((2, 3), dtype=np.float32)
        means -= means.mean(0)
        likeness = means @ noise.mean((1, 2)) / np.maximum(np.linalg.norm(means, axis=1), 1e-6)
        return int(pictures[likeness.argmax()])

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
