"""The layers of the canonical models, each as a graph that can be run by itself: what benchmarks measure.

A line of layers.txt names a layer by its input and by what the planner makes one piece of:

    32x32x1024+640 | group_norm 32 | silu | conv2d 3x3 640 | add image

- the input: height x width x channels, tokens x channels, or channels; `+` joins two that are concatenated;
- the ops of docs/format.md with their sizes: `conv2d` and `depthwise_conv2d` with kernel, `/2` for stride 2, and the
  output channels; `linear` with its outputs; `group_norm` with its groups; `gated_unit` with its function;
  `attention` with heads and keys, `causal` or `relu`; `upsample` with its factor, `resize_like` with its size;
- `add image` is a vector for the whole image (the time embedding), `add` a tensor of the output's shape.

Convolutions keep the size (or halve it: stride 2). Products have a bias, depthwise convolutions have none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import InvalidArgumentError
from mdrt.graph import Graph, Weight

MODELS = ("mobilediffusion", "mobilediffusion-lite", "vae_decoder", "text_encoder")
_FILE = Path(__file__).with_name("layers.txt")
_CROP = 8  # pixels or tokens of a side


@dataclass(frozen=True)
class Layer:
    """A layer, and how often each model of MODELS has it."""

    text: str
    calls: Mapping[str, int]


def read() -> list[Layer]:
    """The lines of layers.txt, in its order: the heaviest first."""
    layers = []
    for line in _FILE.read_text(encoding="ascii").splitlines():
        if line and not line.startswith("#"):
            *counts, text = line.split(maxsplit=len(MODELS))
            layers.append(Layer(text, dict(zip(MODELS, map(int, counts), strict=True))))
    return layers


@dataclass(frozen=True)
class Experiment:
    """A layer ready to run. Nodes around it make its inputs and read its output: so both are stored as in a pipeline.

    Attributes:
        graph: its output is called `y` and holds twice the layer's result.
        weights: float32, checkpoint layout.
        feeds: float32, channels last, halves in value.
        crop: as `feeds`, but a corner of each image (8 x 8 pixels of the first) or the first 8 tokens. Images repeat
            their corner, so norms see the same statistics, and the corner's result is that of the whole but for the
            last row and column. With causal attention and for vectors, `crop` is the whole.
        main: number of the node at the heart of the layer: the last one that multiplies or normalises.
        activations: numbers that the layer reads and writes.
        reader: the layer (`mdrt.quantise.layers`) that reads the result of one that has no matrix.
    """

    graph: Graph
    weights: dict[str, NDArray[np.float32]]
    feeds: dict[str, NDArray[np.float32]]
    crop: dict[str, NDArray[np.float32]]
    main: int
    activations: int
    reader: str | None

    def corner(self, y: NDArray[np.float32]) -> NDArray[np.float32]:
        """The part of `y`, computed from `crop`, that equals the same part of the whole."""
        is_image = y.ndim == 4 and self.crop is not self.feeds
        return y[:, :-1, :-1] if is_image else y


def build(text: str, seed: int = 0) -> Experiment:
    """The experiment of a layer, with random weights and inputs.

    Raises:
        InvalidArgumentError: the text is no layer.
    """
    try:
        source, *ops = [part.strip() for part in text.split("|")]
        builder = _Builder(source, np.random.default_rng(seed))
        for op in ops:
            builder.add(*op.split())
        return builder.finish()
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InvalidArgumentError(f"{text!r} is no layer: {error}") from error


class _Builder:
    """Grows the graph op by op; `value` of `shape` is what the next op reads."""

    def __init__(self, source: str, random: np.random.Generator) -> None:
        self._random = random
        self._graph = Graph()
        self._feeds: dict[str, NDArray[np.float32]] = {}
        self._crop: dict[str, NDArray[np.float32]] = {}
        self._is_cut = True
        self._main = -1
        self._activations = 0
        *sizes, channels = source.split("x")
        self._sizes = tuple(map(int, sizes))  # of the source: height and width, or tokens
        parts = [self._feed((1, *self._sizes, int(count))) for count in channels.split("+")]
        self._shape = (1, *self._sizes, sum(map(int, channels.split("+"))))
        self._value = parts[0] if len(parts) == 1 else self._graph.add("concat", parts, name="concat")

    def add(self, op: str, *sizes: str) -> None:
        methods: dict[str, Callable[..., None]] = {
            "conv2d": self._conv2d,
            "depthwise_conv2d": self._depthwise_conv2d,
            "linear": self._linear,
            "attention": self._attention,
            "group_norm": self._group_norm,
            "layer_norm": self._layer_norm,
            "upsample": self._upsample,
            "resize_like": self._resize_like,
            "gated_unit": self._gated_unit,
            "add": self._add,
        }
        if op in methods:
            methods[op](*sizes)
        elif op in ("silu", "gelu", "quick_gelu") and not sizes:
            self._node(op, [self._value])
        else:
            raise ValueError(f"{op} {' '.join(sizes)} is unknown")

    def finish(self) -> Experiment:
        if self._main < 0:
            raise ValueError("it neither multiplies nor normalises")
        self._activations += math.prod(self._shape)
        main = self._main
        op = self._graph.nodes[main].op
        if op == "group_norm":
            self._activations -= math.prod(self._shape)  # to normalise is its reader's work, as in a pipeline
        reader = None
        if op not in ("conv2d", "linear"):
            reader = f"layer{len(self._graph.nodes)}"  # only a graph with matrices has a format
            self._linear("16")
        self._graph.output(self._graph.add("add", [self._value, self._value], name="double"), "y")
        weights = {name: self._random_weight(weight) for name, weight in self._graph.weights.items()}
        crop = self._crop if self._is_cut else self._feeds
        return Experiment(self._graph, weights, self._feeds, crop, main, self._activations, reader)

    def _feed(self, shape: tuple[int, ...]) -> str:
        """An input (1, height, width, channels), (1, tokens, channels) or (1, channels), doubled."""
        name = "xyzabcd"[len(self._feeds)]
        corner = list(shape)
        repeats = [1] * len(shape)
        if len(shape) == 4:
            for axis, size in enumerate(self._sizes, start=1):
                repeats[axis] = size // _CROP
                corner[axis], rest = divmod(shape[axis], repeats[axis])
                if rest or size % _CROP:
                    raise ValueError(f"{shape[axis]} of {size} pixels cannot be cut into corners of {_CROP}")
        numbers = self._random.standard_normal(corner, dtype=np.float32).astype(np.float16).astype(np.float32)
        self._feeds[name] = np.tile(numbers, repeats)
        self._crop[name] = numbers[:, :_CROP] if len(shape) == 3 else numbers
        self._activations += math.prod(shape)
        sides = {2: (), 3: ("length",), 4: ("height", "width")}[len(shape)]
        self._graph.input(name, ["batch", *(f"{name}_{side}" for side in sides), shape[-1]])
        return self._graph.add("add", [name, name], name=f"{name}.double")

    def _node(self, op: str, inputs: list[str], shape: tuple[int, ...] | None = None, **attributes: Any) -> None:
        self._value = self._graph.add(op, inputs, name=f"{op}{len(self._graph.nodes)}", **attributes)
        self._shape = shape or self._shape
        if op in ("conv2d", "linear", "attention", "group_norm", "layer_norm"):
            self._main = len(self._graph.nodes) - 1

    def _with_weights(self, *slots: str) -> list[str]:
        name = f"layer{len(self._graph.nodes)}"
        return [self._value, *(f"{name}.{slot}" for slot in slots)]

    def _spatial(self, kernel: str) -> dict[str, Any]:
        """Attributes of `3x3` or `3x3/2`, and the shape behind it; the size is kept, or divided by the stride."""
        size, _, stride = kernel.partition("/")
        height, width = map(int, size.split("x"))
        step = int(stride or 1)
        self._shape = (1, *(-(-side // step) for side in self._shape[1:3]), self._shape[-1])
        pads = [height // 2, width // 2, height // 2, width // 2]
        return {"kernel_size": [height, width], "stride": [step, step], "pads": pads}

    def _conv2d(self, kernel: str, out_channels: str) -> None:
        in_channels, count = self._shape[-1], int(out_channels)
        spatial = self._spatial(kernel)
        shape = (*self._shape[:-1], count)
        inputs = self._with_weights("weight", "bias")
        self._node("conv2d", inputs, shape, in_channels=in_channels, out_channels=count, **spatial)

    def _depthwise_conv2d(self, kernel: str) -> None:
        spatial = self._spatial(kernel)
        self._node("depthwise_conv2d", self._with_weights("weight"), channels=self._shape[-1], **spatial)

    def _linear(self, out_features: str) -> None:
        count = int(out_features)
        shape = (*self._shape[:-1], count)
        inputs = self._with_weights("weight", "bias")
        self._node("linear", inputs, shape, in_features=self._shape[-1], out_features=count)

    def _attention(self, heads: str, _heads: str, keys: str, _keys: str, *words: str) -> None:
        k = self._feed_whole((1, int(keys), self._shape[-1]))
        v = k if "shared" in words else self._feed_whole((1, int(keys), self._shape[-1]))
        self._is_cut = "causal" not in words
        fn = "relu" if "relu" in words else "softmax"
        causal = str("causal" in words).lower()
        self._node("attention", [self._value, k, v], num_heads=int(heads), attention_fn=fn, is_causal=causal)

    def _feed_whole(self, shape: tuple[int, ...]) -> str:
        name = self._feed(shape)
        source = name.removesuffix(".double")
        self._crop[source] = self._feeds[source]
        return name

    def _group_norm(self, groups: str) -> None:
        inputs = self._with_weights("weight", "bias")
        self._node("group_norm", inputs, num_groups=int(groups), num_channels=self._shape[-1], eps=1e-6)

    def _layer_norm(self) -> None:
        self._node("layer_norm", self._with_weights("weight", "bias"), normalized_shape=self._shape[-1], eps=1e-5)

    def _upsample(self, factor: str) -> None:
        shape = (1, *(side * int(factor) for side in self._shape[1:3]), self._shape[-1])
        self._node("upsample", [self._value], shape, scale_factor=int(factor))

    def _resize_like(self, size: str) -> None:
        height, width = map(int, size.split("x"))
        read = self._activations
        like = self._feed((1, height, width, 16))
        self._activations = read  # only its size is looked at
        self._node("resize_like", [self._value, like], (1, height, width, self._shape[-1]))

    def _gated_unit(self, function: str) -> None:
        self._node("gated_unit", [self._value], (*self._shape[:-1], self._shape[-1] // 2), act_fn=function)

    def _add(self, what: str = "") -> None:
        if what not in ("", "image"):
            raise ValueError(f"add {what} is unknown")
        other = self._feed((1, self._shape[-1]) if what else self._shape)
        self._node("add", [self._value, other])

    def _random_weight(self, weight: Weight) -> NDArray[np.float32]:
        """Normal numbers: vectors around 0 (around 1 where they scale), the rest so that results stay near 1."""
        numbers = self._random.standard_normal(weight.shape, dtype=np.float32)
        if weight.kind == "vector":
            numbers *= np.float32(0.1)
            numbers += np.float32(weight.name.endswith(".weight"))
        else:
            numbers *= np.float32(1 / math.sqrt(math.prod(weight.shape[1:])))
        return numbers
