"""References of the nearest-neighbour resizes."""

from __future__ import annotations

import numpy as np

from mdrt.ops.reference import Array, Case, Reference


def upsample(x: Array, *, scale_factor: int) -> Array:
    """Every pixel of x (n, h, w, c) becomes scale_factor * scale_factor pixels."""
    return np.asarray(x.astype(np.float64).repeat(scale_factor, axis=1).repeat(scale_factor, axis=2))


def resize_like(x: Array, like: Array) -> Array:
    """x (n, h, w, c) at the height and width of `like`: pixel i comes from i * in // out."""
    rows = np.arange(like.shape[1]) * x.shape[1] // like.shape[1]
    columns = np.arange(like.shape[2]) * x.shape[2] // like.shape[2]
    return np.asarray(x.astype(np.float64)[:, rows][:, :, columns])


REFERENCES = {
    "upsample": Reference(
        upsample,
        tolerance=0,
        uses=("scale_factor",),
        cases=[
            *(Case(((2, 3, 5, c),), {"scale_factor": 2}) for c in (1, 8, 15, 16, 17, 33)),
            Case(((1, 1, 1, 3),), {"scale_factor": 3}),
        ],
    ),
    "resize_like": Reference(
        resize_like,
        tolerance=0,
        cases=[
            *(Case(((2, 3, 5, c), (2, h, w, 4))) for c in (1, 15, 16, 33) for h, w in ((6, 10), (5, 9), (3, 5))),
            Case(((1, 7, 5, 16), (1, 13, 9, 16))),
            Case(((1, 8, 8, 3), (1, 3, 5, 3))),
        ],
    ),
}
