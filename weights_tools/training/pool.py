"""The pool of training latents: every picture of the training set once, with all that it may be called.

A caption that several pictures have leaves the choice to the noise: of these pictures the one is drawn whose direction
is most like the noise's means over all pixels. So noise and caption determine the picture, and a model learns in one
step to draw one of them, not their average. The idea is that of Li et al., "Immiscible Diffusion", arXiv 2406.12303;
means are few and easily seen in noise. With C channels there are C + 1 directions with equal angles between them, the
same for all keywords, so that a model learns once which of them noise points to, and each picture is chosen as often as
any other. Of a keyword's pictures as many can be chosen, those that differ most: with dozens, most noise lies near a
border between two of them, where a model draws their average.
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
        means = self.latents.mean((2, 3), dtype=np.float32)
        members, directions = [np.arange(len(self.latents))], [np.zeros_like(means)]
        most = means.shape[1] + 1 if len(self._rows["keyword"]) else len(self.latents)  # one's own are all taught
        known: dict[bytes, tuple[NDArray[np.intp], NDArray[np.float32]]] = {}  # a keyword's wordings have the same
        for pictures in np.split(pairs[:, 1], np.flatnonzero(np.diff(pairs[:, 0])) + 1) if len(pairs) else ():
            if (key := pictures.tobytes()) not in known:
                chosen = pictures[most_different(self.latents[pictures], most)]
                known[key] = chosen, directions_of(means[chosen])
            members.append(known[key][0])
            directions.append(known[key][1])
        sizes = np.array([len(chosen) for chosen in members[1:]], np.intp)
        starts = len(self.latents) + np.cumsum(sizes) - sizes
        self.members, self.directions = np.concatenate(members), np.concatenate(directions)
        self._start, self._size = self.picture.astype(np.intp), np.ones(len(self.kind), np.intp)
        self._start[rows], self._size[rows] = starts[groups.ravel()], sizes[groups.ravel()]

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


def most_different(latents: NDArray[np.float16], most: int) -> NDArray[np.intp]:
    """Places of this many of (n, ...) latents, or of all: again and again the one farthest from those there are."""
    flat = latents.reshape(len(latents), -1).astype(np.float32)
    if len(flat) <= most:
        return np.arange(len(flat))
    chosen = [int(np.square(flat - flat.mean(0)).sum(1).argmin())]
    distances = np.full(len(flat), np.inf, np.float32)
    while len(chosen) < most:
        distances = np.minimum(distances, np.square(flat - flat[chosen[-1]]).sum(1))
        chosen.append(int(distances.argmax()))
    return np.sort(chosen)


def directions_of(means: NDArray[np.float32]) -> NDArray[np.float32]:
    """A unit vector for each of (n, channels) means, among those like the one in which it differs from their average.

    Up to one vector more than channels they are corners of one regular simplex, whatever the means; more are spread as
    evenly as there is room.
    """
    count, channels = means.shape
    if count > channels + 1:
        return spread(means)
    corners = spread(np.eye(channels + 1, channels, dtype=np.float32))
    likeness = (means - means.mean(0)) @ corners.T
    directions = np.empty_like(means)
    for _ in range(count):
        mean, corner = np.unravel_index(likeness.argmax(), likeness.shape)
        directions[mean] = corners[corner]
        likeness[mean], likeness[:, corner] = -np.inf, -np.inf
    return directions


def spread(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit vectors that point where (n, channels) vectors differ from their average, as evenly as there is room.

    With at most one vector more than channels, all angles between them are the same.
    """
    left, strengths, right = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    count = int((strengths > 1e-5 * max(strengths[0], 1e-30)).sum())
    evenly = left[:, :count] @ right[:count]
    return np.asarray(evenly / np.maximum(np.linalg.norm(evenly, axis=1, keepdims=True), 1e-6), np.float32)


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
