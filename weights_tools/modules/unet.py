"""The MobileDiffusion UNet in PyTorch, for export and training; needs the extra `export` or `train`.

Parameters are called as in checkpoints, so `load_state_dict` takes them. Arrays are NCHW, text (batch, tokens, width).
Architecture: Zhao et al., "MobileDiffusion", arXiv 2311.16567.
"""

# PyTorch gives the results of modules as Any, and attributes of modules as Tensor or Module.
# mypy: disable-error-code="no-any-return, no-untyped-call, operator, arg-type, index"

from __future__ import annotations

import math
import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from weights_tools.components import unet_config
from weights_tools.modules.attention import join_heads, relu_attention, softmax_attention, split_heads
from weights_tools.modules.loading import load
from weights_tools.unet import UNetConfig


class SeparableConv2d(nn.Module):
    """A depthwise 3x3 convolution, then a pointwise one."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, 1, groups=in_channels, bias=False)
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


def conv3x3(in_channels: int, out_channels: int, separable: bool, stride: int = 1) -> nn.Module:
    """A 3x3 convolution with one pixel of zeros around, whole or separable."""
    if separable:
        return SeparableConv2d(in_channels, out_channels, stride)
    return nn.Conv2d(in_channels, out_channels, 3, stride, 1)


class ResnetBlock(nn.Module):
    """Two normalised convolutions around the time embedding, beside a shortcut."""

    def __init__(self, config: UNetConfig, in_channels: int, out_channels: int, separable: bool) -> None:
        super().__init__()
        groups = config.norm_num_groups
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-5)
        self.conv1 = conv3x3(in_channels, out_channels, separable)
        self.time_emb_proj = nn.Linear(4 * config.block_out_channels[0], out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-5)
        self.conv2 = conv3x3(out_channels, out_channels, separable)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = y + self.time_emb_proj(functional.silu(embedding)).unsqueeze(-1).unsqueeze(-1)
        y = self.conv2(functional.silu(self.norm2(y)))
        shortcut = self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x
        return shortcut + y


class Attention(nn.Module):
    """Multi-head attention to a context, with one projection for keys and values or two."""

    def __init__(self, config: UNetConfig, channels: int, context_channels: int) -> None:
        super().__init__()
        self.num_heads = channels // config.attention_head_dim
        self.attention_fn = config.attention_fn
        self.share_kv = config.share_kv
        self.to_q = nn.Linear(channels, channels, bias=False)
        for name in ["to_kv"] if config.share_kv else ["to_k", "to_v"]:
            self.add_module(name, nn.Linear(context_channels, channels, bias=False))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        query = split_heads(self.to_q(x), self.num_heads)
        key = split_heads(self.to_kv(context) if self.share_kv else self.to_k(context), self.num_heads)
        value = key if self.share_kv else split_heads(self.to_v(context), self.num_heads)
        attention = relu_attention if self.attention_fn == "relu" else softmax_attention
        return self.to_out[0](join_heads(attention(query, key, value)))


class GatedUnit(nn.Module):
    """A projection whose first half is multiplied by the activation of its second."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, config.ff_mult * channels)
        self.act = functional.silu if config.act_fn == "silu" else functional.gelu

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * self.act(gate)


class FeedForward(nn.Module):
    """The gated layer and the way back; the middle of `net` is where a dropout would be."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        back = nn.Linear(config.ff_mult * channels // 2, channels)
        self.net = nn.ModuleList([GatedUnit(config, channels), nn.Identity(), back])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class TransformerBlock(nn.Module):
    """Self-attention (optional), cross-attention and feed-forward, each normalised before and added after."""

    def __init__(self, config: UNetConfig, channels: int, self_attention: bool) -> None:
        super().__init__()
        self.self_attention = self_attention
        if self_attention:
            self.norm1 = nn.LayerNorm(channels)
            self.attn1 = Attention(config, channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(config, channels, config.cross_attention_dim)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(config, channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        if self.self_attention:
            y = self.norm1(x)
            x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2D(nn.Module):
    """Transformer blocks over the pixels of an image, beside a shortcut."""

    def __init__(self, config: UNetConfig, channels: int, depth: int, self_attention: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_num_groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        blocks = [TransformerBlock(config, channels, self_attention) for _ in range(depth)]
        self.transformer_blocks = nn.ModuleList(blocks)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.proj_in(self.norm(x))
        tokens = y.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return x + self.proj_out(tokens.transpose(1, 2).unflatten(2, y.shape[-2:]))


class Resample(nn.Module):
    """A convolution that halves the size, or a nearest resize to a given size and a convolution."""

    def __init__(self, channels: int, separable: bool, stride: int) -> None:
        super().__init__()
        self.conv = conv3x3(channels, channels, separable, stride)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        return self.conv(x if size is None else functional.interpolate(x, size=size, mode="nearest"))


class Block(nn.Module):
    """One level on the way down or up: pairs of resnet and transformer; the owner adds a resampler."""

    def __init__(self, config: UNetConfig, level: int, in_channels: list[int]) -> None:
        super().__init__()
        channels, separable = config.block_out_channels[level], config.separable_conv[level]
        self.resnets = nn.ModuleList([ResnetBlock(config, size, channels, separable) for size in in_channels])
        depth = config.transformer_layers_per_block[level]
        self.attentions = nn.ModuleList(
            Transformer2D(config, channels, depth, config.self_attention[level]) for _ in in_channels if depth
        )

    def layer(self, index: int, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        """The `index`-th resnet and its transformer, if the level has any."""
        x = self.resnets[index](x, embedding)
        return self.attentions[index](x, context) if len(self.attentions) else x


class MidBlock(nn.Module):
    """Resnet, transformer with self-attention, resnet."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels, separable = config.block_out_channels[-1], config.separable_conv[-1]
        self.resnets = nn.ModuleList(ResnetBlock(config, channels, channels, separable) for _ in range(2))
        self.attentions = nn.ModuleList([Transformer2D(config, channels, config.mid_transformer_layers, True)])

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x, embedding), context)
        return self.resnets[1](x, embedding)


class TimestepEmbedding(nn.Module):
    """Cosines and sines of the timestep through two linear layers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(size, 4 * size)
        self.linear_2 = nn.Linear(4 * size, 4 * size)

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.linear_1.in_features // 2
        steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
        angle = timestep.float().unsqueeze(1) * torch.exp(-math.log(10000) * steps / half)
        waves = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.linear_1.weight.dtype)
        return self.linear_2(functional.silu(self.linear_1(waves)))


class MobileDiffusionUNet2DConditionModel(nn.Module):
    """The whole UNet.

    forward takes sample (n, in_channels, h, w), timestep (n) and encoder_hidden_states (n, tokens, cross_attention_dim)
    and returns (n, out_channels, h, w).
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, levels = config.block_out_channels, len(config.block_out_channels)
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0])
        self.down_blocks = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        skips: list[int] = []
        current = channels[0]
        for level in range(levels):
            count = config.layers_per_block[level]
            block = Block(config, level, [current] + [channels[level]] * (count - 1))
            current = channels[level]
            skips += [current] * count
            if level < levels - 1 and config.downsample[level]:
                block.downsamplers = nn.ModuleList([Resample(current, config.separable_conv[level], 2)])
            self.down_blocks.append(block)
        self.mid_block = MidBlock(config)
        for level in reversed(range(levels)):
            in_channels = []
            for _ in range(config.layers_per_block[level]):
                in_channels.append(current + skips.pop())
                current = channels[level]
            block = Block(config, level, in_channels)
            if level > 0 and config.downsample[level - 1]:
                block.upsamplers = nn.ModuleList([Resample(current, config.separable_conv[level - 1], 1)])
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, channels[0], eps=1e-5)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def forward(self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        embedding = self.time_embedding(timestep)
        x = self.conv_in(sample)
        skips: list[Tensor] = []
        sizes: list[torch.Size] = []
        for block in self.down_blocks:
            for index in range(len(block.resnets)):
                x = block.layer(index, x, embedding, encoder_hidden_states)
                skips.append(x)
            if hasattr(block, "downsamplers"):
                sizes.append(x.shape[-2:])
                x = block.downsamplers[0](x)
        x = self.mid_block(x, embedding, encoder_hidden_states)
        for block in self.up_blocks:
            for index in range(len(block.resnets)):
                x = block.layer(index, torch.cat([x, skips.pop()], dim=1), embedding, encoder_hidden_states)
            if hasattr(block, "upsamplers"):
                x = block.upsamplers[0](x, sizes.pop())
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


def load_unet(path: str | os.PathLike[str]) -> MobileDiffusionUNet2DConditionModel:
    """The UNet of a pipeline directory; errors as `load`."""
    return load(path, "unet", lambda checkpoint: MobileDiffusionUNet2DConditionModel(unet_config(checkpoint)))
