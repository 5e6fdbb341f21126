"""Each kernel by itself: NumPy in and out, channels last (NHWC), weights in checkpoint layout (OIHW; out, in).

Every function builds a graph of one or two nodes and runs it. All take these keywords besides their own:

- `format`: how large weights are stored, "fp32" (default), "fp16", "int8" or, when inputs stay floats, "int8_weights";
- `input_range`: (min, max) of the input of an int8 layer, which convolutions of more than 1x1 need; None (default):
  every pixel or token gets a scale of its own;
- `isa`: instruction set of the native backend, one that `mdrt info` lists; None: the best there is;
- `threads`: of the native backend; None: MDRT_THREADS, else the physical cores;
- `backend`: "native" (default) or "reference".

They return float32 and raise `InvalidArgumentError` for shapes that do not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mdrt.errors import InvalidArgumentError
from mdrt.graph import Graph, op_table
from mdrt.interpreter import Interpreter
from mdrt.quantise import layers

if TYPE_CHECKING:
    from typing_extensions import Unpack

Array = NDArray[np.float32]


class Options(TypedDict, total=False):
    """The keywords that every kernel takes."""

    format: str
    input_range: tuple[float, float] | None
    isa: str | None
    threads: int | None
    backend: str


def conv2d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    pads: int | Sequence[int] = 0,
    **options: Unpack[Options],
) -> Array:
    """x (batch, h, w, in), weight (out, in, kernel_h, kernel_w), bias (out); pads: top, left, bottom, right."""
    weight = _weight(weight, 4, "(out, in, kernel_h, kernel_w)")
    attributes = {
        "in_channels": weight.shape[1],
        "out_channels": weight.shape[0],
        "kernel_size": list(weight.shape[2:]),
        "stride": _several(stride, 2, "stride"),
        "pads": _several(pads, 4, "pads"),
    }
    return _run("conv2d", [x, weight, bias], attributes, options)


def depthwise_conv2d(
    x: ArrayLike,
    weight: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    pads: int | Sequence[int] = 0,
    **options: Unpack[Options],
) -> Array:
    """One filter per channel: x (batch, h, w, channels), weight (channels, kernel_h, kernel_w), bias (channels)."""
    weight = _weight(weight, 3, "(channels, kernel_h, kernel_w)")
    attributes = {
        "channels": weight.shape[0],
        "kernel_size": list(weight.shape[1:]),
        "stride": _several(stride, 2, "stride"),
        "pads": _several(pads, 4, "pads"),
    }
    return _run("depthwise_conv2d", [x, weight, bias], attributes, options)


def separable_conv2d(
    x: ArrayLike,
    depthwise_weight: ArrayLike,
    pointwise_weight: ArrayLike,
    depthwise_bias: ArrayLike | None = None,
    pointwise_bias: ArrayLike | None = None,
    *,
    stride: int | Sequence[int] = 1,
    pads: int | Sequence[int] = 0,
    **options: Unpack[Options],
) -> Array:
    """Depthwise (channels, kernel_h, kernel_w), then pointwise convolution (out, channels, 1, 1), in one plan."""
    depthwise = _weight(depthwise_weight, 3, "(channels, kernel_h, kernel_w)")
    pointwise = _weight(pointwise_weight, 4, "(out, channels, 1, 1)")
    builder = _Builder()
    hidden = builder.node(
        "depthwise_conv2d",
        "depthwise",
        [builder.input("x", x), depthwise, depthwise_bias],
        {
            "channels": depthwise.shape[0],
            "kernel_size": list(depthwise.shape[1:]),
            "stride": _several(stride, 2, "stride"),
            "pads": _several(pads, 4, "pads"),
        },
    )
    result = builder.node(
        "conv2d",
        "pointwise",
        [hidden, pointwise, pointwise_bias],
        {
            "in_channels": pointwise.shape[1],
            "out_channels": pointwise.shape[0],
            "kernel_size": list(pointwise.shape[2:]),
            "stride": [1, 1],
            "pads": [0, 0, 0, 0],
        },
    )
    return builder.run(result, options)


def linear(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None, **options: Unpack[Options]) -> Array:
    """x (batch, ..., in), weight (out, in), bias (out)."""
    weight = _weight(weight, 2, "(out, in)")
    attributes = {"in_features": weight.shape[1], "out_features": weight.shape[0]}
    return _run("linear", [x, weight, bias], attributes, options)


def self_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    num_heads: int,
    attention_fn: str = "softmax",
    is_causal: bool = False,
    **options: Unpack[Options],
) -> Array:
    """Attention of projected q, k, v (batch, L, channels); `attention_fn` "softmax", or "relu": relu(qk/sqrt(d))/L."""
    attributes = {"num_heads": num_heads, "attention_fn": attention_fn, "is_causal": "true" if is_causal else "false"}
    return _run("attention", [q, k, v], attributes, options)


def cross_attention(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    *,
    num_heads: int,
    attention_fn: str = "softmax",
    **options: Unpack[Options],
) -> Array:
    """Attention of q (batch, tokens, channels) to another sequence's k and v (batch, length, channels)."""
    return self_attention(q, k, v, num_heads=num_heads, attention_fn=attention_fn, **options)


def shared_kv_attention(
    q: ArrayLike, kv: ArrayLike, *, num_heads: int, attention_fn: str = "softmax", **options: Unpack[Options]
) -> Array:
    """Attention whose keys and values are one tensor, kv (batch, length, channels)."""
    builder = _Builder()
    query, shared = builder.input("q", q), builder.input("kv", kv)
    attributes = {"num_heads": num_heads, "attention_fn": attention_fn, "is_causal": "false"}
    return builder.run(builder.node("attention", "attention", [query, shared, shared], attributes), options)


def group_norm(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike, *, num_groups: int, eps: float = 1e-5, **options: Unpack[Options]
) -> Array:
    """x (batch, ..., channels), weight and bias (channels)."""
    weight = _weight(weight, 1, "(channels)")
    attributes = {"num_groups": num_groups, "num_channels": weight.shape[0], "eps": eps}
    return _run("group_norm", [x, weight, bias], attributes, options)


def layer_norm(
    x: ArrayLike, weight: ArrayLike, bias: ArrayLike, *, eps: float = 1e-5, **options: Unpack[Options]
) -> Array:
    """x (batch, ..., channels), weight and bias (channels)."""
    weight = _weight(weight, 1, "(channels)")
    return _run("layer_norm", [x, weight, bias], {"normalized_shape": weight.shape[0], "eps": eps}, options)


def silu(x: ArrayLike, **options: Unpack[Options]) -> Array:
    """x * sigmoid(x)."""
    return _run("silu", [x], {}, options)


def gelu(x: ArrayLike, **options: Unpack[Options]) -> Array:
    """x * Phi(x), the exact form with erf."""
    return _run("gelu", [x], {}, options)


def quick_gelu(x: ArrayLike, **options: Unpack[Options]) -> Array:
    """x * sigmoid(1.702 x)."""
    return _run("quick_gelu", [x], {}, options)


def gated_unit(x: ArrayLike, *, act_fn: str = "silu", **options: Unpack[Options]) -> Array:
    """x (batch, ..., 2 n) -> first half * act_fn(second half), (batch, ..., n)."""
    return _run("gated_unit", [x], {"act_fn": act_fn}, options)


def add(a: ArrayLike, b: ArrayLike, **options: Unpack[Options]) -> Array:
    """a + b; b may be (batch, channels) and is then added to every pixel."""
    return _run("add", [a, b], {}, options)


def concat(x: Sequence[ArrayLike], **options: Unpack[Options]) -> Array:
    """Two or more maps (batch, h, w, channels), joined along the channels."""
    return _run("concat", list(x), {}, options)


def upsample(x: ArrayLike, *, scale_factor: int = 2, **options: Unpack[Options]) -> Array:
    """Nearest neighbour: x (batch, h, w, channels) -> (batch, h * scale_factor, w * scale_factor, channels)."""
    return _run("upsample", [x], {"scale_factor": scale_factor}, options)


def resize_like(x: ArrayLike, like: ArrayLike, **options: Unpack[Options]) -> Array:
    """Nearest neighbour to the height and width of `like`."""
    return _run("resize_like", [x, like], {}, options)


def embedding(input_ids: ArrayLike, weight: ArrayLike, position_weight: ArrayLike, **options: Unpack[Options]) -> Array:
    """input_ids (batch, length), integers; weight (num_embeddings, n) + position_weight (max_length, n)."""
    weight = _weight(weight, 2, "(num_embeddings, n)")
    position_weight = _weight(position_weight, 2, "(max_length, n)")
    attributes = {
        "num_embeddings": weight.shape[0],
        "embedding_dim": weight.shape[1],
        "max_position_embeddings": position_weight.shape[0],
    }
    return _run("embedding", [input_ids, weight, position_weight], attributes, options)


def timestep_embedding(timestep: ArrayLike, *, embedding_dim: int, **options: Unpack[Options]) -> Array:
    """timestep (batch) -> (batch, embedding_dim): cosines, then sines, as diffusers with flip_sin_to_cos."""
    return _run("timestep_embedding", [timestep], {"embedding_dim": embedding_dim}, options)


class _Builder:
    """A small graph with its arrays."""

    def __init__(self) -> None:
        self.graph = Graph()
        self.feeds: dict[str, NDArray[Any]] = {}
        self.weights: dict[str, Array] = {}

    def input(self, name: str, value: ArrayLike, dtype: str = "fp32") -> str:
        """An activation: becomes an input of the graph."""
        array = np.asarray(value)
        if array.dtype.kind not in ("iu" if dtype == "int32" else "iuf") or array.ndim == 0 or 0 in array.shape:
            kind = "integers" if dtype == "int32" else "numbers"
            raise InvalidArgumentError(
                f"{name}: a filled array of {kind} is needed, not {array.dtype} {list(array.shape)}"
            )
        self.feeds[name] = np.ascontiguousarray(array, dtype=np.int32 if dtype == "int32" else np.float32)
        return self.graph.input(name, array.shape, dtype)

    def node(self, op: str, name: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> str:
        """A node whose inputs are names of values, or arrays for weights; trailing inputs may be None."""
        slots = op_table()[op]["inputs"]
        values = []
        for index, value in enumerate(inputs):
            slot = slots[min(index, len(slots) - 1)]
            if value is None:
                continue
            if isinstance(value, str):
                values.append(value)
            else:
                values.append(f"{name}.{slot['name']}")
                self.weights[values[-1]] = np.asarray(value, dtype=np.float32)
        return self.graph.add(op, values, name=name, **attributes)

    def run(self, value: str, options: Options) -> Array:
        self.graph.output(value, "y")
        settings: dict[str, Any] = {**options}
        input_range = settings.pop("input_range", None)
        if input_range is not None:
            settings["input_ranges"] = dict.fromkeys(layers(self.graph), input_range)
        return Interpreter(self.graph, self.weights, **settings).run(self.feeds)["y"]


def _run(op: str, arrays: Sequence[ArrayLike | None], attributes: dict[str, Any], options: Options) -> Array:
    """One node; arrays in the order of the op's row, None for an absent optional one at the end."""
    builder = _Builder()
    slots = op_table()[op]["inputs"]
    inputs: list[Any] = []
    for index, array in enumerate(arrays):
        slot = slots[min(index, len(slots) - 1)]
        if array is None or slot["kind"] in ("weight", "optional_weight"):
            inputs.append(array)
        else:
            name = f"{slot['name']}{index}" if slot["kind"] == "many_activations" else slot["name"]
            inputs.append(builder.input(name, array, "int32" if name == "input_ids" else "fp32"))
    return builder.run(builder.node(op, op, inputs, attributes), options)


def _weight(value: ArrayLike, rank: int, layout: str) -> Array:
    array = np.asarray(value, dtype=np.float32)
    if array.ndim != rank or 0 in array.shape:
        raise InvalidArgumentError(f"a weight {layout} is needed, not one of shape {list(array.shape)}")
    return array


def _several(value: int | Sequence[int], count: int, name: str) -> list[int]:
    values = [value] * count if isinstance(value, int) else list(value)
    if len(values) != count:
        raise InvalidArgumentError(f"{name}: one number or {count} are needed, not {len(values)}")
    return values
