"""The graphs of the decoder and the encoder of diffusers' AutoencoderKL."""

from __future__ import annotations

from dataclasses import dataclass

from mdrt.errors import ConversionError
from mdrt.graph import Graph
from weights_tools import layers

_EPS = 1e-6


@dataclass(frozen=True)
class VaeConfig:
    """The keys of vae/config.json that matter; defaults are diffusers'."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float | None = None

    def __post_init__(self) -> None:
        sizes = (self.in_channels, self.out_channels, self.latent_channels, self.layers_per_block, self.norm_num_groups)
        if not self.block_out_channels or min(*self.block_out_channels, *sizes) < 1:
            raise ConversionError("vae/config.json: channels, groups and layers must be at least 1")
        if self.scaling_factor <= 0:
            raise ConversionError(f"vae/config.json: scaling_factor is {self.scaling_factor}; it must be above 0")

    @property
    def scale_factor(self) -> int:
        """Pixels per latent cell, each way."""
        return int(2 ** (len(self.block_out_channels) - 1))


def build_vae_decoder(config: VaeConfig) -> Graph:
    """From latents to pictures, about -1 to 1.

    latent_sample (batch, latent_height, latent_width, latent_channels) -> sample (batch, height, width, out_channels).
    """
    graph = Graph()
    levels = config.block_out_channels[::-1]
    x = graph.input("latent_sample", ["batch", "latent_height", "latent_width", config.latent_channels])
    if config.use_post_quant_conv:
        x = layers.conv2d(graph, x, "post_quant_conv", config.latent_channels, config.latent_channels, kernel_size=1)
    x = layers.conv2d(graph, x, "decoder.conv_in", config.latent_channels, levels[0])
    x = _middle(graph, x, "decoder.mid_block", levels[0], config)
    channels = levels[0]
    for level, out_channels in enumerate(levels):
        block = f"decoder.up_blocks.{level}"
        for index in range(config.layers_per_block + 1):
            x = _resnet(graph, x, f"{block}.resnets.{index}", channels, out_channels, config)
            channels = out_channels
        if level < len(levels) - 1:
            name = f"{block}.upsamplers.0"
            x = graph.add("upsample", [x], name=f"{name}.resize", scale_factor=2)
            x = layers.conv2d(graph, x, f"{name}.conv", channels, channels, name=name)
    graph.output(_head(graph, x, "decoder", channels, config.out_channels, config), "sample")
    return graph


def build_vae_encoder(config: VaeConfig) -> Graph:
    """From pictures to the mean, then the logarithm of the variance, of their latents.

    sample (batch, height, width, in_channels) -> latent_parameters (batch, latent_height, latent_width,
    2 * latent_channels).
    """
    graph = Graph()
    levels = config.block_out_channels
    x = graph.input("sample", ["batch", "height", "width", config.in_channels])
    x = layers.conv2d(graph, x, "encoder.conv_in", config.in_channels, levels[0])
    channels = levels[0]
    for level, out_channels in enumerate(levels):
        block = f"encoder.down_blocks.{level}"
        for index in range(config.layers_per_block):
            x = _resnet(graph, x, f"{block}.resnets.{index}", channels, out_channels, config)
            channels = out_channels
        if level < len(levels) - 1:
            name = f"{block}.downsamplers.0"
            x = layers.conv2d(graph, x, f"{name}.conv", channels, channels, stride=2, pads=(0, 0, 1, 1), name=name)
    x = _middle(graph, x, "encoder.mid_block", channels, config)
    parameters = 2 * config.latent_channels
    x = _head(graph, x, "encoder", channels, parameters, config)
    if config.use_quant_conv:
        x = layers.conv2d(graph, x, "quant_conv", parameters, parameters, kernel_size=1)
    graph.output(x, "latent_parameters")
    return graph


def _middle(graph: Graph, x: str, name: str, channels: int, config: VaeConfig) -> str:
    x = _resnet(graph, x, f"{name}.resnets.0", channels, channels, config)
    if config.mid_block_add_attention:
        x = _attention(graph, x, f"{name}.attentions.0", channels, config)
    return _resnet(graph, x, f"{name}.resnets.1", channels, channels, config)


def _attention(graph: Graph, x: str, name: str, channels: int, config: VaeConfig) -> str:
    """One head of all channels, as diffusers' VAE blocks have it."""
    y = layers.group_norm(graph, x, f"{name}.group_norm", channels, config.norm_num_groups, _EPS)
    q, k, v = (layers.linear(graph, y, f"{name}.to_{part}", channels, channels) for part in "qkv")
    y = layers.attention(graph, q, k, v, f"{name}.attention", 1)
    y = layers.linear(graph, y, f"{name}.to_out.0", channels, channels)
    return layers.add(graph, x, y, name)


def _resnet(graph: Graph, x: str, name: str, in_channels: int, out_channels: int, config: VaeConfig) -> str:
    groups = config.norm_num_groups
    h = layers.silu(graph, layers.group_norm(graph, x, f"{name}.norm1", in_channels, groups, _EPS))
    h = layers.conv2d(graph, h, f"{name}.conv1", in_channels, out_channels)
    # Before the second half: x is not read again then, so the shortcut may take its memory.
    if in_channels != out_channels:
        x = layers.conv2d(graph, x, f"{name}.conv_shortcut", in_channels, out_channels, kernel_size=1)
    h = layers.silu(graph, layers.group_norm(graph, h, f"{name}.norm2", out_channels, groups, _EPS))
    h = layers.conv2d(graph, h, f"{name}.conv2", out_channels, out_channels)
    return layers.add(graph, x, h, name)


def _head(graph: Graph, x: str, name: str, in_channels: int, out_channels: int, config: VaeConfig) -> str:
    x = layers.group_norm(graph, x, f"{name}.conv_norm_out", in_channels, config.norm_num_groups, _EPS)
    return layers.conv2d(graph, layers.silu(graph, x), f"{name}.conv_out", in_channels, out_channels)
