"""References of the normalisations."""

from __future__ import annotations

import numpy as np

from mdrt.ops.reference import Array, Case, Reference


def group_norm(x: Array, weight: Array, bias: Array, *, num_groups: int, eps: float = 1e-5) -> Array:
    """Mean 0 and variance 1 over the pixels and channels of each group, then scale and shift per channel.

    Args:
        x: (n, ..., num_channels).
        weight, bias: (num_channels).
        num_groups: divides num_channels; a group is a run of neighbouring channels.
        eps: added to the variance.

    Source: Wu and He, "Group Normalization", arXiv 1803.08494.
    """
    groups = x.astype(np.float64).reshape(x.shape[0], -1, num_groups, x.shape[-1] // num_groups)
    mean = groups.mean(axis=(1, 3), keepdims=True)
    variance = groups.var(axis=(1, 3), keepdims=True)
    normed = ((groups - mean) / np.sqrt(variance + eps)).reshape(x.shape)
    return np.asarray(normed * weight.astype(np.float64) + bias.astype(np.float64))


def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float = 1e-5) -> Array:
    """Mean 0 and variance 1 over the last axis, then scale and shift; weight and bias are of its size.

    Source: Ba, Kiros and Hinton, "Layer Normalization", arXiv 1607.06450.
    """
    rows = x.astype(np.float64)
    mean = rows.mean(axis=-1, keepdims=True)
    variance = rows.var(axis=-1, keepdims=True)
    return np.asarray((rows - mean) / np.sqrt(variance + eps) * weight.astype(np.float64) + bias.astype(np.float64))


def _group(shape: tuple[int, ...], groups: int) -> Case:
    c = shape[-1]
    return Case((shape, (c,), (c,)), {"num_groups": groups, "num_channels": c, "eps": 1e-5})


def _layer(rows: tuple[int, ...], c: int) -> Case:
    return Case(((*rows, c), (c,), (c,)), {"normalized_shape": c, "eps": 1e-5})


REFERENCES = {
    "group_norm": Reference(
        group_norm,
        tolerance=8,
        uses=("num_groups", "eps"),
        cases=[
            *(
                _group((2, 3, 5, c), g)
                for c, g in ((8, 1), (8, 8), (15, 5), (16, 4), (17, 17), (33, 3), (48, 16), (48, 2))
            ),
            *(_group((1, h, w, 24), 8) for h, w in ((1, 2), (20, 1), (17, 16), (64, 33))),
        ],
    ),
    "layer_norm": Reference(
        layer_norm,
        tolerance=4,
        uses=("eps",),
        cases=[*(_layer((2, 3), c) for c in (2, 3, 8, 15, 16, 17, 31, 33, 48, 300)), _layer((1, 2, 3), 40)],
    ),
}
