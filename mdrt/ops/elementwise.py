"""References of the ops that work on elements: activations, sums, concatenation."""

from __future__ import annotations

import math

import numpy as np

from mdrt.ops.reference import Array, Case, Reference

_erf = np.vectorize(math.erf, otypes=[np.float64])


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    x = x.astype(np.float64)
    return x / (1.0 + np.exp(-x))


def gelu(x: Array) -> Array:
    """x times the normal distribution function of x (the erf form)."""
    x = x.astype(np.float64)
    return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))))


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x)."""
    x = x.astype(np.float64)
    return x / (1.0 + np.exp(-1.702 * x))


def gated_unit(x: Array, *, act_fn: str = "silu") -> Array:
    """The first half of the channels times act_fn ("silu" or "gelu") of the second half: (..., 2c) -> (..., c)."""
    value, gate = np.split(x.astype(np.float64), 2, axis=-1)
    return value * (silu if act_fn == "silu" else gelu)(gate)


def add(a: Array, b: Array) -> Array:
    """a + b; b is of a's shape, or (n, c), the same for every pixel of an image."""
    if b.ndim < a.ndim:
        b = b.reshape(b.shape[0], *[1] * (a.ndim - 2), b.shape[-1])
    return np.asarray(a.astype(np.float64) + b.astype(np.float64))


def concat(*x: Array) -> Array:
    """All inputs side by side along the channels."""
    return np.concatenate([part.astype(np.float64) for part in x], axis=-1)


_ROWS = [Case(((2, 3, 5, c),)) for c in (1, 3, 8, 15, 16, 17, 31, 33, 48)]

REFERENCES = {
    "silu": Reference(silu, tolerance=2, cases=_ROWS),
    "gelu": Reference(gelu, tolerance=2, cases=_ROWS),
    "quick_gelu": Reference(quick_gelu, tolerance=2, cases=_ROWS),
    "gated_unit": Reference(
        gated_unit,
        tolerance=4,
        uses=("act_fn",),
        cases=[
            Case(((2, 3, 2 * c),), {"act_fn": act_fn})
            for c in (1, 3, 8, 15, 16, 17, 33, 48)
            for act_fn in ("silu", "gelu")
        ],
    ),
    "add": Reference(
        add,
        tolerance=1,
        cases=[
            *(Case(((2, 3, 5, c), (2, 3, 5, c))) for c in (1, 8, 15, 16, 17, 48)),
            *(Case(((2, 3, 5, c), (2, c))) for c in (1, 8, 15, 16, 17, 48)),
            Case(((2, 7, 24), (2, 7, 24))),
        ],
    ),
    "concat": Reference(
        concat,
        tolerance=0,
        cases=[
            *(Case(((2, 3, 4, a), (2, 3, 4, b))) for a, b in ((16, 16), (1, 1), (8, 24), (15, 17), (48, 3), (33, 31))),
            Case(((1, 5, 3), (1, 5, 16), (1, 5, 7))),
        ],
    ),
}
