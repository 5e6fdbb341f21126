"""Starts a wider autoencoder from a trained narrower one: channels are copied, their readers' weights divided.

Chen, Goodfellow and Shlens, "Net2Net", arXiv 1511.05641. Copies stay within the groups of the normalisation, so that
its statistics hardly change; a little noise on the weights lets copies part ways.
"""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from mdrt.errors import InvalidArgumentError
from weights_tools.modules.vae import AutoencoderKL

_NOISE = 0.02


def widen(narrow: AutoencoderKL, block_out_channels: tuple[int, ...], noise: float = _NOISE) -> AutoencoderKL:
    """An autoencoder with more channels that draws about what `narrow` draws.

    Exactly that without noise, if all channels are multiplied by whole numbers. PyTorch's global generator is used.

    Raises:
        InvalidArgumentError: a level becomes narrower, levels become alike, or their count differs.
    """
    old = narrow.config
    levels = list(zip(old.block_out_channels, block_out_channels, strict=False))
    wide = AutoencoderKL(dataclasses.replace(old, block_out_channels=block_out_channels))
    # Where two levels become alike, the shortcut between them would vanish.
    if any(new < channels for channels, new in levels) or wide.state_dict().keys() != narrow.state_dict().keys():
        raise InvalidArgumentError(
            f"an autoencoder with block_out_channels {list(old.block_out_channels)} "
            f"cannot be widened to {list(block_out_channels)}"
        )
    sources = {(channels, new): _copies(channels, new, old.norm_num_groups) for channels, new in levels}
    with torch.no_grad():
        weights = narrow.state_dict()
        for name, target in wide.state_dict().items():
            value = weights[name]
            if value.shape[0] != target.shape[0]:
                value = value[sources[value.shape[0], target.shape[0]]]
            if value.dim() > 1 and value.shape[1] != target.shape[1]:
                source = sources[value.shape[1], target.shape[1]]
                shape = (1, -1, *[1] * (value.dim() - 2))
                value = value[:, source] / torch.bincount(source)[source].view(shape)
            if value.dim() > 1 and value.shape != weights[name].shape:
                value = value * (1 + noise * torch.randn_like(value))
            target.copy_(value)
    return wide


def _copies(channels: int, new: int, groups: int) -> Tensor:
    """For each new channel the old one that it copies: within a group all in turn, the last ones by chance."""
    size, new_size = channels // groups, new // groups
    parts = []
    for group in range(groups):
        whole = torch.arange(size).repeat(new_size // size)
        parts.append(group * size + torch.cat([whole, torch.randperm(size)[: new_size % size]]))
    return torch.cat(parts)
