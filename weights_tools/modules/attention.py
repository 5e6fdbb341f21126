"""Attention as the networks share it."""

# PyTorch gives the results of functions as Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(batch, tokens, channels) -> (batch, num_heads, tokens, channels / num_heads)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(batch, heads, tokens, head_dim) -> (batch, tokens, heads * head_dim)."""
    return x.transpose(1, 2).flatten(2)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, is_causal: bool = False) -> Tensor:
    """softmax(query key^T / sqrt(head_dim)) value, all (batch, heads, tokens, head_dim)."""
    if query.device.type != "cpu" or not torch.is_grad_enabled():
        return functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal)
    # On a CPU PyTorch's fused backward pass takes twice as long as this on the few tokens of small pictures.
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if is_causal:
        scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
    return scores.softmax(-1).to(value.dtype) @ value


def relu_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """relu(query key^T / sqrt(head_dim)) / tokens value: no exponentials, no sums."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    return functional.relu(scores) / key.shape[-2] @ value
