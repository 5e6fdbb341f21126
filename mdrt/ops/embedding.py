"""References of the embeddings of tokens and timesteps."""

from __future__ import annotations

import math

import numpy as np

from mdrt.errors import InvalidArgumentError
from mdrt.ops.reference import Array, Case, Reference


def embedding(
    input_ids: Array,
    weight: Array,
    position_weight: Array,
    weight_scale: Array | None = None,
    position_weight_scale: Array | None = None,
) -> Array:
    """Row input_ids[i, j] of `weight` plus row j of `position_weight`.

    Args:
        input_ids: integers (n, length), each in [0, num_embeddings).
        weight: (num_embeddings, embedding_dim).
        position_weight: (max_position_embeddings, embedding_dim), at least `length` rows.
        weight_scale: (num_embeddings), the factor of every row of an int8 `weight`.
        position_weight_scale: (max_position_embeddings), likewise.

    Raises:
        InvalidArgumentError: an id is out of range.
    """
    if input_ids.min() < 0 or input_ids.max() >= len(weight):
        raise InvalidArgumentError(
            f"input_ids reach from {input_ids.min()} to {input_ids.max()}, not 0 to {len(weight) - 1}"
        )
    rows, positions = weight[input_ids], position_weight[: input_ids.shape[1]]
    if weight_scale is not None and position_weight_scale is not None:
        rows = rows.astype(np.float32) * weight_scale[input_ids][..., None]
        positions = positions.astype(np.float32) * position_weight_scale[: input_ids.shape[1], None]
        return np.asarray(rows + positions)
    return np.asarray(rows.astype(np.float64) + positions.astype(np.float64))


def timestep_embedding(timestep: Array, *, embedding_dim: int) -> Array:
    """Cosines, then sines, of timestep (n) at embedding_dim / 2 frequencies from 1 down to 1/10000.

    Angles are rounded to float32 where PyTorch rounds them: at t = 999 an exact product would differ by 6e-5.
    """
    half = embedding_dim // 2
    exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half)
    frequency = np.exp(exponent.astype(np.float64)).astype(np.float32)
    angle = (timestep.astype(np.float32)[:, None] * frequency).astype(np.float64)
    return np.concatenate([np.cos(angle), np.sin(angle)], axis=-1)


def _embedding(n: int, length: int, rows: int, positions: int, dim: int) -> Case:
    sizes = {"num_embeddings": rows, "embedding_dim": dim, "max_position_embeddings": positions}
    return Case(((n, length), (rows, dim), (positions, dim)), sizes)


REFERENCES = {
    "embedding": Reference(
        embedding,
        tolerance=1,
        cases=[
            *(_embedding(2, 5, 11, 7, dim) for dim in (1, 8, 15, 16, 17, 31, 33, 48)),
            *(_embedding(1, length, 3, 77, 24) for length in (1, 16, 77)),
        ],
    ),
    "timestep_embedding": Reference(
        timestep_embedding,
        tolerance=1,
        uses=("embedding_dim",),
        cases=[Case(((n,),), {"embedding_dim": dim}) for n in (1, 2) for dim in (2, 6, 16, 24, 34, 320)],
    ),
}
