"""The autoencoder in PyTorch: diffusers' AutoencoderKL, tensor for tensor, for training; needs the extra `train`.

Parameters are called as in checkpoints, so `load_state_dict` takes them. Arrays are NCHW, pictures about -1 to 1.
"""

# PyTorch gives the results of modules as Any, and attributes of modules as Tensor or Module.
# mypy: disable-error-code="no-any-return, no-untyped-call, operator, arg-type, index"

from __future__ import annotations

import os

from torch import Tensor, nn
from torch.nn import functional

from weights_tools.checkpoint import Checkpoint
from weights_tools.components import vae_config
from weights_tools.modules.loading import load
from weights_tools.vae import VaeConfig

_EPS = 1e-6
_DECODER = ("decoder.", "post_quant_conv.")


class ResnetBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut."""

    def __init__(self, config: VaeConfig, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(config.norm_num_groups, in_channels, _EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(config.norm_num_groups, out_channels, _EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.silu(self.norm1(x)))
        y = self.conv2(functional.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class Attention(nn.Module):
    """Self-attention over all pixels with one head."""

    def __init__(self, config: VaeConfig, channels: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(config.norm_num_groups, channels, _EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)
        y = functional.scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens))
        return x + self.to_out[0](y).transpose(1, 2).unflatten(2, x.shape[-2:])


class MidBlock(nn.Module):
    """Resnet, attention if there is any, resnet."""

    def __init__(self, config: VaeConfig, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(config, channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList(Attention(config, channels) for _ in range(config.mid_block_add_attention))

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Downsample(nn.Module):
    """Halves the size; the zeros go below and to the right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles the size by repeating pixels, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Block(nn.Module):
    """The resnets of one level, then its resampler, which the owner adds."""

    def __init__(self, config: VaeConfig, in_channels: int, out_channels: int, count: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock(config, out_channels if index else in_channels, out_channels) for index in range(count)
        )
        self.resamplers: str | None = None

    def add(self, name: str, resampler: nn.Module) -> None:
        """Makes `resampler` the last layer, under the name that checkpoints give its list."""
        self.resamplers = name
        self.add_module(name, nn.ModuleList([resampler]))

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        return x if self.resamplers is None else getattr(self, self.resamplers)[0](x)


class Encoder(nn.Module):
    """From pictures (n, in_channels, h, w) to (n, 2 * latent_channels, h / scale_factor, w / scale_factor)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        levels = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, levels[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, channels in enumerate(levels):
            block = Block(config, levels[max(0, level - 1)], channels, config.layers_per_block)
            if level < len(levels) - 1:
                block.add("downsamplers", Downsample(channels))
            self.down_blocks.append(block)
        self.mid_block = MidBlock(config, levels[-1])
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, levels[-1], _EPS)
        self.conv_out = nn.Conv2d(levels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """From latents (n, latent_channels, h, w) to pictures (n, out_channels, h * scale_factor, w * scale_factor)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        levels = config.block_out_channels[::-1]
        self.conv_in = nn.Conv2d(config.latent_channels, levels[0], 3, padding=1)
        self.mid_block = MidBlock(config, levels[0])
        self.up_blocks = nn.ModuleList()
        for level, channels in enumerate(levels):
            block = Block(config, levels[max(0, level - 1)], channels, config.layers_per_block + 1)
            if level < len(levels) - 1:
                block.add("upsamplers", Upsample(channels))
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, levels[-1], _EPS)
        self.conv_out = nn.Conv2d(levels[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Encoder and decoder; latents here are those of the encoder, not yet times `scaling_factor`."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        parameters, channels = 2 * config.latent_channels, config.latent_channels
        if config.use_quant_conv:
            self.quant_conv = nn.Conv2d(parameters, parameters, 1)
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def freeze_encoder(self) -> None:
        """Leaves only what decodes to be trained."""
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name.startswith(_DECODER))

    def encode(self, sample: Tensor) -> Tensor:
        """The mean of the latents: (n, in_channels, h, w) -> (n, latent_channels, h / scale_factor, ...)."""
        x = self.encoder(sample)
        return (self.quant_conv(x) if self.config.use_quant_conv else x).chunk(2, dim=1)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """The pictures of latents: (n, latent_channels, h, w) -> (n, out_channels, h * scale_factor, ...)."""
        return self.decoder(self.post_quant_conv(latents) if self.config.use_post_quant_conv else latents)


def load_autoencoder(path: str | os.PathLike[str]) -> AutoencoderKL:
    """The autoencoder of a pipeline directory; errors as `load`."""
    return load(path, "vae", lambda checkpoint: AutoencoderKL(vae_config(checkpoint)))


def load_decoder(path: str | os.PathLike[str]) -> AutoencoderKL:
    """As `load_autoencoder`, but without the encoder, which a pipeline directory need not have: it only decodes."""

    def make(checkpoint: Checkpoint) -> AutoencoderKL:
        model = AutoencoderKL(vae_config(checkpoint))
        del model.encoder
        if model.config.use_quant_conv:
            del model.quant_conv
        return model

    return load(path, "vae", make, lambda name: name if name.startswith(_DECODER) else None)
