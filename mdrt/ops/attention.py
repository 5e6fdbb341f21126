"""Reference of attention."""

from __future__ import annotations

import math

import numpy as np

from mdrt.ops.reference import Array, Case, Reference


def attention(
    q: Array, k: Array, v: Array, *, num_heads: int, attention_fn: str = "softmax", is_causal: str = "false"
) -> Array:
    """Every query gathers the values, weighted by how well their keys fit.

    Args:
        q: (n, ..., channels); the dimensions between count as one list of tokens.
        k, v: (n, ..., channels), of one length. One array given twice is shared K/V.
        num_heads: divides channels; a head is a run of neighbouring channels.
        attention_fn: "softmax", or "relu": relu(q k^T / sqrt(head_dim)) / (number of keys).
        is_causal: "true": a query sees the keys up to its own position.

    Returns:
        float64, of q's shape.

    Source: Vaswani et al., "Attention is all you need", arXiv 1706.03762; the ReLU form: Wortsman et al.,
    "Replacing softmax with ReLU in vision transformers", arXiv 2309.08586.
    """
    queries, keys, values = (_heads(x, num_heads) for x in (q, k, v))
    scores = queries @ keys.transpose(0, 1, 3, 2) / math.sqrt(queries.shape[-1])
    if is_causal == "true":
        scores = np.where(np.tril(np.ones(scores.shape[-2:], dtype=bool)), scores, -np.inf)
    if attention_fn == "relu":
        weights = np.maximum(scores, 0.0) / scores.shape[-1]
    else:
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
    return np.asarray((weights @ values).transpose(0, 2, 1, 3).reshape(q.shape))


def _heads(x: Array, num_heads: int) -> Array:
    """(n, ..., channels) -> float64 (n, num_heads, tokens, head_dim)."""
    n, channels = x.shape[0], x.shape[-1]
    heads = x.astype(np.float64).reshape(n, -1, num_heads, channels // num_heads)
    return np.asarray(heads.transpose(0, 2, 1, 3))


def _case(
    queries: tuple[int, ...], keys: int, heads: int, head_dim: int, fn: str = "softmax", causal: bool = False
) -> Case:
    c = heads * head_dim
    attributes = {"num_heads": heads, "attention_fn": fn, "is_causal": "true" if causal else "false"}
    return Case(((1, *queries, c), (1, keys, c), (1, keys, c)), attributes)


REFERENCES = {
    "attention": Reference(
        attention,
        tolerance=16,
        uses=("num_heads", "attention_fn", "is_causal"),
        cases=[
            *(_case((5,), 7, 2, d, fn) for d in (1, 3, 8, 15, 16, 17, 33, 64) for fn in ("softmax", "relu")),
            *(_case((n,), n, 2, 16, causal=True) for n in (1, 2, 15, 16, 17, 33, 77)),
            *(_case((q,), k, 3, 8) for q, k in ((1, 1), (1, 129), (31, 2), (33, 128), (65, 77), (130, 257))),
            *(_case((3, 4), k, 2, 24, fn) for k in (12, 130) for fn in ("softmax", "relu")),
        ],
    )
}
