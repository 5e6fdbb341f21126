"""The graph of a MobileDiffusion UNet (arXiv 2311.16567) with the module names of diffusers."""

from __future__ import annotations

from dataclasses import dataclass

from mdrt.errors import ConversionError
from mdrt.graph import Graph
from weights_tools import layers


@dataclass(frozen=True)
class UNetConfig:
    """The keys of unet/config.json. Lists have one entry per level; `downsample` one between each two levels."""

    in_channels: int = 8
    out_channels: int = 8
    sample_size: int = 64
    block_out_channels: tuple[int, ...] = (320, 640, 1024, 1024)
    downsample: tuple[bool, ...] = (True, True, False)
    layers_per_block: tuple[int, ...] = (2, 1, 1, 1)
    transformer_layers_per_block: tuple[int, ...] = (0, 1, 4, 4)
    self_attention: tuple[bool, ...] = (False, False, False, True)
    mid_transformer_layers: int = 4
    separable_conv: tuple[bool, ...] = (False, False, True, True)
    attention_head_dim: int = 64
    cross_attention_dim: int = 768
    ff_mult: int = 6
    norm_num_groups: int = 32
    share_kv: bool = True
    attention_fn: str = "softmax"
    act_fn: str = "silu"

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        for key in ("layers_per_block", "transformer_layers_per_block", "self_attention", "separable_conv"):
            if len(getattr(self, key)) != levels or levels < 1:
                raise _refuse(f"{key} has {len(getattr(self, key))} entries, block_out_channels {levels}")
        if len(self.downsample) < levels - 1:
            raise _refuse(
                f"downsample has {len(self.downsample)} entries; {levels - 1} are needed, one between two levels"
            )
        sizes = (self.in_channels, self.out_channels, self.sample_size, self.attention_head_dim, self.ff_mult)
        if min(*sizes, *self.block_out_channels, *self.layers_per_block, self.norm_num_groups) < 1:
            raise _refuse("channels, sizes and layers_per_block must be at least 1")
        if self.block_out_channels[0] % 2:
            raise _refuse(
                f"block_out_channels begins with {self.block_out_channels[0]}; the time embedding needs an even number"
            )
        transformers = [*self.transformer_layers_per_block, self.mid_transformer_layers]
        for channels, depth in zip([*self.block_out_channels, self.block_out_channels[-1]], transformers, strict=True):
            heads = channels // self.attention_head_dim
            if depth and (heads < 1 or channels % heads):
                raise _refuse(
                    f"attention_head_dim {self.attention_head_dim} makes {heads} heads, "
                    f"which do not divide {channels} channels"
                )
            if depth and channels * self.ff_mult % 2:
                raise _refuse(
                    f"ff_mult {self.ff_mult} times {channels} channels is odd, so there are no two halves to gate"
                )
        for key, words in (("attention_fn", ("softmax", "relu")), ("act_fn", ("silu", "gelu"))):
            if getattr(self, key) not in words:
                raise _refuse(f"{key} is {getattr(self, key)!r}; it must be {' or '.join(words)}")


def _refuse(what: str) -> ConversionError:
    return ConversionError(f"unet/config.json: {what}")


def build_unet(config: UNetConfig) -> Graph:
    """The model call of a sampling step.

    sample (batch, height, width, in_channels), timestep (batch), encoder_hidden_states
    (batch, sequence_length, cross_attention_dim) -> out_sample (batch, height, width, out_channels).
    """
    return _UNet(config).build()


class _UNet:
    def __init__(self, config: UNetConfig) -> None:
        self.config = config
        self.graph = Graph()
        self.context = ""
        self.time = ""

    def build(self) -> Graph:
        config, graph = self.config, self.graph
        first = config.block_out_channels[0]
        sample = graph.input("sample", ["batch", "height", "width", config.in_channels])
        timestep = graph.input("timestep", ["batch"])
        self.context = graph.input("encoder_hidden_states", ["batch", "sequence_length", config.cross_attention_dim])
        self.time = self.time_embedding(timestep)
        x = layers.conv2d(graph, sample, "conv_in", config.in_channels, first)
        x, skips, sizes = self.down(x)
        x = self.middle(x)
        x = self.up(x, skips, sizes)
        x = layers.silu(graph, layers.group_norm(graph, x, "conv_norm_out", first, config.norm_num_groups, 1e-5))
        graph.output(layers.conv2d(graph, x, "conv_out", first, config.out_channels), "out_sample")
        return graph

    def time_embedding(self, timestep: str) -> str:
        """The SiLU of the embedded timestep, (batch, 4 * block_out_channels[0]): what every block projects."""
        graph, size = self.graph, self.config.block_out_channels[0]
        x = graph.add("timestep_embedding", [timestep], name="time_proj", embedding_dim=size)
        x = layers.linear(graph, x, "time_embedding.linear_1", size, 4 * size)
        x = layers.silu(graph, x)
        x = layers.linear(graph, x, "time_embedding.linear_2", 4 * size, 4 * size, name="time_embedding")
        return layers.silu(graph, x)

    def down(self, x: str) -> tuple[str, list[tuple[str, int]], list[str]]:
        """Also returns the skips (value, channels) and the values before each downsampling."""
        config = self.config
        skips: list[tuple[str, int]] = []
        sizes: list[str] = []
        channels = config.block_out_channels[0]
        for level, out_channels in enumerate(config.block_out_channels):
            block = f"down_blocks.{level}"
            for index in range(config.layers_per_block[level]):
                x = self.layer(x, block, index, level, channels)
                channels = out_channels
                skips.append((x, channels))
            if level < len(config.block_out_channels) - 1 and config.downsample[level]:
                sizes.append(x)
                x = self.resample(x, f"{block}.downsamplers.0", channels, config.separable_conv[level], stride=2)
        return x, skips, sizes

    def middle(self, x: str) -> str:
        channels, last = self.config.block_out_channels[-1], len(self.config.block_out_channels) - 1
        x = self.resnet(x, "mid_block.resnets.0", channels, channels, last)
        depth = self.config.mid_transformer_layers
        x = self.transformer(x, "mid_block.attentions.0", channels, depth, self_attention=True)
        return self.resnet(x, "mid_block.resnets.1", channels, channels, last)

    def up(self, x: str, skips: list[tuple[str, int]], sizes: list[str]) -> str:
        config = self.config
        channels = config.block_out_channels[-1]
        for position, level in enumerate(reversed(range(len(config.block_out_channels)))):
            block = f"up_blocks.{position}"
            for index in range(config.layers_per_block[level]):
                skip, skip_channels = skips.pop()
                x = self.graph.add("concat", [x, skip], name=f"{block}.resnets.{index}.concat")
                x = self.layer(x, block, index, level, channels + skip_channels)
                channels = config.block_out_channels[level]
            if level > 0 and config.downsample[level - 1]:
                name = f"{block}.upsamplers.0"
                x = self.graph.add("resize_like", [x, sizes.pop()], name=f"{name}.resize")
                x = self.resample(x, name, channels, config.separable_conv[level - 1], stride=1)
        return x

    def layer(self, x: str, block: str, index: int, level: int, in_channels: int) -> str:
        """One residual block of a level and the transformer behind it, if the level has any."""
        config, channels = self.config, self.config.block_out_channels[level]
        x = self.resnet(x, f"{block}.resnets.{index}", in_channels, channels, level)
        depth = config.transformer_layers_per_block[level]
        if depth:
            x = self.transformer(x, f"{block}.attentions.{index}", channels, depth, config.self_attention[level])
        return x

    def conv3x3(self, x: str, module: str, in_channels: int, out_channels: int, separable: bool) -> str:
        convolution = layers.separable_conv2d if separable else layers.conv2d
        return convolution(self.graph, x, module, in_channels, out_channels)

    def resample(self, x: str, name: str, channels: int, separable: bool, stride: int) -> str:
        convolution = layers.separable_conv2d if separable else layers.conv2d
        return convolution(self.graph, x, f"{name}.conv", channels, channels, stride=stride, name=name)

    def resnet(self, x: str, name: str, in_channels: int, out_channels: int, level: int) -> str:
        graph, groups, separable = self.graph, self.config.norm_num_groups, self.config.separable_conv[level]
        h = layers.silu(graph, layers.group_norm(graph, x, f"{name}.norm1", in_channels, groups, 1e-5))
        h = self.conv3x3(h, f"{name}.conv1", in_channels, out_channels, separable)
        time = layers.linear(
            graph, self.time, f"{name}.time_emb_proj", 4 * self.config.block_out_channels[0], out_channels
        )
        h = layers.add(graph, h, time, f"{name}.add_time")
        # Before the second half: x is not read again then, so the shortcut may take its memory.
        if in_channels != out_channels:
            x = layers.conv2d(graph, x, f"{name}.conv_shortcut", in_channels, out_channels, kernel_size=1)
        h = layers.silu(graph, layers.group_norm(graph, h, f"{name}.norm2", out_channels, groups, 1e-5))
        h = self.conv3x3(h, f"{name}.conv2", out_channels, out_channels, separable)
        return layers.add(graph, x, h, name)

    def transformer(self, x: str, name: str, channels: int, depth: int, self_attention: bool) -> str:
        graph = self.graph
        y = layers.group_norm(graph, x, f"{name}.norm", channels, self.config.norm_num_groups, 1e-6)
        y = layers.conv2d(graph, y, f"{name}.proj_in", channels, channels, kernel_size=1)
        for index in range(depth):
            y = self.transformer_block(y, f"{name}.transformer_blocks.{index}", channels, self_attention)
        y = layers.conv2d(graph, y, f"{name}.proj_out", channels, channels, kernel_size=1)
        return layers.add(graph, x, y, name)

    def transformer_block(self, x: str, name: str, channels: int, self_attention: bool) -> str:
        graph, hidden = self.graph, self.config.ff_mult * channels
        if self_attention:
            y = layers.layer_norm(graph, x, f"{name}.norm1", channels)
            x = layers.add(
                graph, x, self.attention(y, y, f"{name}.attn1", channels, channels), f"{name}.attn1.residual"
            )
        y = layers.layer_norm(graph, x, f"{name}.norm2", channels)
        y = self.attention(y, self.context, f"{name}.attn2", channels, self.config.cross_attention_dim)
        x = layers.add(graph, x, y, f"{name}.attn2.residual")
        y = layers.layer_norm(graph, x, f"{name}.norm3", channels)
        y = layers.linear(graph, y, f"{name}.ff.net.0.proj", channels, hidden)
        y = graph.add("gated_unit", [y], name=f"{name}.ff.net.0", act_fn=self.config.act_fn)
        y = layers.linear(graph, y, f"{name}.ff.net.2", hidden // 2, channels)
        return layers.add(graph, x, y, name)

    def attention(self, x: str, context: str, name: str, channels: int, context_channels: int) -> str:
        graph, heads = self.graph, channels // self.config.attention_head_dim
        q = layers.linear(graph, x, f"{name}.to_q", channels, channels, bias=False)
        if self.config.share_kv:
            k = v = layers.linear(graph, context, f"{name}.to_kv", context_channels, channels, bias=False)
        else:
            k = layers.linear(graph, context, f"{name}.to_k", context_channels, channels, bias=False)
            v = layers.linear(graph, context, f"{name}.to_v", context_channels, channels, bias=False)
        y = layers.attention(graph, q, k, v, f"{name}.attention", heads, self.config.attention_fn)
        return layers.linear(graph, y, f"{name}.to_out.0", channels, channels, name=name)
