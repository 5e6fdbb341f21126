"""int8 (docs/numerics.md): which layers can be stored so, the arithmetic of scales, and graphs rewritten for it.

Every step is a float32 operation as the kernels do it, so that equal inputs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import InvalidArgumentError
from mdrt.formats import LAYER_FORMATS, ComponentFormat, check_format, stored_format
from mdrt.graph import Graph, Node, op_table

Floats = NDArray[np.float32]

# Below it 1 / scale would overflow; what is so small counts as zero.
_SMALLEST_SCALE = np.float32(2.0**-126)
_ONE_PIXEL = {"kernel_size": [1, 1], "stride": [1, 1], "pads": [0, 0, 0, 0]}


class LazyArray(Protocol):
    """A weight in checkpoint layout that is read when it is needed."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]: ...


Weights = Mapping[str, NDArray[Any]] | Mapping[str, LazyArray]


def quantise_columns(weight: NDArray[Any]) -> tuple[Floats, Floats]:
    """Integers of [-127, 127] as float32 in the shape of `weight`, and a scale for each of its first dimension.

    Raises:
        InvalidArgumentError: a value is not finite.
    """
    rows = np.asarray(weight, dtype=np.float32).reshape(len(weight), -1)
    if not np.isfinite(rows).all():
        raise InvalidArgumentError("a weight that is not finite cannot be int8")
    scale = _scales(np.abs(rows).max(axis=1))
    return np.rint(rows * (np.float32(1) / scale)[:, None]).reshape(weight.shape), scale


def column_sums(integers: NDArray[Any]) -> NDArray[np.int32]:
    """The sum of all integers for each of the first dimension."""
    return np.asarray(integers.reshape(len(integers), -1).sum(axis=1, dtype=np.float64), dtype=np.int32)


def input_parameters(input_range: tuple[float, float]) -> tuple[np.float32, int]:
    """Scale and zero point of an input within [min, max], a range that is widened to contain 0.

    Raises:
        InvalidArgumentError: the range is not finite, or min is greater than max.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (np.float32(value) for value in input_range)
        span = high - low
    if not (np.isfinite(span) and low <= high):
        raise InvalidArgumentError(f"the input range {tuple(input_range)} is not min <= max, both finite")
    low, high = min(low, np.float32(0)), max(high, np.float32(0))
    scale = (high - low) / np.float32(255)
    if scale < _SMALLEST_SCALE:
        return np.float32(1), -128
    return scale, int(np.clip(-128 - np.rint(low / scale), -128, 127))


def quantise_static(x: NDArray[Any], scale: np.float32, zero_point: int) -> Floats:
    """clamp(rne(x / scale) + zero_point, -128, 127), integers as float32."""
    scaled = np.asarray(x, dtype=np.float32) * (np.float32(1) / np.float32(scale))
    return np.asarray(np.clip(np.rint(scaled) + np.float32(zero_point), -128, 127), dtype=np.float32)


def quantise_dynamic(x: NDArray[Any]) -> tuple[Floats, Floats]:
    """Integers of [-127, 127] as float32, and a scale for each row of the last dimension (..., 1)."""
    x = np.asarray(x, dtype=np.float32)
    scale = _scales(np.abs(x).max(axis=-1, keepdims=True))
    return np.rint(x * (np.float32(1) / scale)), scale


def _scales(largest: Floats) -> Floats:
    scale = largest / np.float32(127)
    return np.asarray(np.where(scale < _SMALLEST_SCALE, 1, scale), dtype=np.float32)


@dataclass(frozen=True)
class Layer:
    """A convolution, matrix product or embedding with the nodes that share its weights.

    `needs_input_range`: its outputs take several pixels each, so int8 needs the range of its input beforehand.
    """

    name: str
    op: str
    weight: str
    nodes: tuple[Node, ...]

    @property
    def needs_input_range(self) -> bool:
        return self.op == "conv2d" and any(
            list(node.attributes[key]) != value for node in self.nodes for key, value in _ONE_PIXEL.items()
        )

    @property
    def is_quantised(self) -> bool:
        """Whether its weights are int8 in the graph."""
        return "weight_scale" in self._inputs

    @property
    def multiplies_integers(self) -> bool:
        """Whether its input becomes int8 too."""
        return "weight_sum" in self._inputs

    @property
    def has_only_int8_weights(self) -> bool:
        """Whether its weights are int8 and its input is not, though it could be."""
        return self.is_quantised and self.op != "embedding" and not self.multiplies_integers

    @property
    def _inputs(self) -> list[str]:
        names = [slot["name"] for slot in op_table()[self.op]["inputs"]]
        return names[: len(self.nodes[0].inputs)]


def layers(graph: Graph) -> dict[str, Layer]:
    """The layers that have a format of their own, called like their weight without `.weight`, in the graph's order."""
    found: dict[str, Layer] = {}
    for node in graph.nodes:
        if node.op in ("conv2d", "linear", "embedding"):
            name = _module(node.inputs[1])
            nodes = (*found[name].nodes, node) if name in found else (node,)
            found[name] = Layer(name, node.op, node.inputs[1], nodes)
    return found


@dataclass(frozen=True)
class Stored:
    """A component as the file holds it: the graph with int8 inputs, every tensor of it, and the tensors' formats."""

    graph: Graph
    weights: Weights
    formats: Mapping[str, str]


def store_component(graph: Graph, weights: Weights, format: str | ComponentFormat) -> Stored:
    """The graph and weights of a component in a format; int8 tensors are computed whenever they are read, and not kept.

    Layers with int8 weights in `graph` stay as they are.

    Raises:
        InvalidArgumentError: the format names an unknown layer, an int8 layer lacks its input range, or a range is no
            range.
    """
    format = ComponentFormat(format) if isinstance(format, str) else format
    chosen = _chosen_formats(graph, format)
    rewriter = _Rewriter(graph, weights, chosen, format.input_ranges)
    layer_of = {name: layer for layer in layers(graph).values() for node in layer.nodes for name in node.inputs[1:]}
    formats = {
        name: stored_format(chosen[layer_of[name].name] if name in layer_of else format.default, weight)
        for name, weight in rewriter.graph.weights.items()
    }
    return Stored(rewriter.graph, rewriter.weights, formats)


def _chosen_formats(graph: Graph, format: ComponentFormat) -> dict[str, str]:
    found = layers(graph)
    check_format(format.default, LAYER_FORMATS)
    for name in (*format.layers, *format.input_ranges):
        if name not in found:
            raise InvalidArgumentError(f"there is no layer {name!r}")
    chosen = {name: format.layers.get(name, format.default) for name in found}
    for name, layer in found.items():
        check_format(chosen[name], LAYER_FORMATS)
        is_new = chosen[name] == "int8" and not layer.is_quantised
        if is_new and layer.needs_input_range and name not in format.input_ranges:
            raise InvalidArgumentError(
                f"layer {name} takes several pixels at once and needs the range of its input to be int8; "
                "calibrate it or give it another format"
            )
    return chosen


def _module(weight: str) -> str:
    return weight.removesuffix(".weight")


class _Computed:
    """A tensor made from others when it is read."""

    def __init__(self, shape: tuple[int, ...], make: Callable[[], NDArray[Any]]) -> None:
        self.shape = shape
        self._make = make

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self._make().astype(dtype or np.float32, copy=False)


class _Overlay(Mapping[str, Any]):
    """Weights of which some are replaced or added."""

    def __init__(self, base: Weights, added: Mapping[str, Any]) -> None:
        self._base, self._added = base, added

    def __getitem__(self, name: str) -> Any:
        return self._added[name] if name in self._added else self._base[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._base
        yield from (name for name in self._added if name not in self._base)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Rewriter:
    """Copies a graph, with the inputs of layers with int8 weights added."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        chosen: Mapping[str, str],
        input_ranges: Mapping[str, tuple[float, float]],
    ) -> None:
        self.graph = Graph()
        self._source = weights
        self._input_ranges = input_ranges
        self._added: dict[str, Any] = {}
        self.weights: Weights = _Overlay(weights, self._added)
        for entry in graph.inputs:
            self.graph.input(entry.name, entry.shape, entry.dtype)
        found = {node.name: layer for layer in layers(graph).values() for node in layer.nodes}
        for node in graph.nodes:
            layer = found.get(node.name)
            inputs = list(node.inputs)
            if layer is not None and chosen[layer.name] in ("int8", "int8_weights") and not layer.is_quantised:
                inputs = self._tables(inputs) if node.op == "embedding" else self._product(layer, inputs)
                if node.op != "embedding" and chosen[layer.name] == "int8":
                    inputs += self._integer_input(layer)
            self.graph.add(node.op, inputs, name=node.name, **node.attributes)
        for name, value in graph.outputs.items():
            self.graph.output(value, name)

    def _product(self, layer: Layer, inputs: list[str]) -> list[str]:
        x, weight, *rest = inputs
        columns = self._columns(layer)
        bias = rest[0] if rest else self._add(f"{layer.name}.zero_bias", columns, lambda: np.zeros(columns, np.float32))
        return [x, weight, bias, self._quantise(weight)]

    def _integer_input(self, layer: Layer) -> list[str]:
        """What a product of integers needs further."""
        sums = self._add(
            f"{layer.name}.weight_sum", self._columns(layer), lambda: column_sums(self._quantised(layer.weight)[0])
        )
        inputs = [sums]
        if layer.name in self._input_ranges:
            try:
                parameters = input_parameters(self._input_ranges[layer.name])
            except InvalidArgumentError as error:
                raise InvalidArgumentError(f"layer {layer.name}: {error}") from error
            for name, value in zip(("input_scale", "input_zero_point"), parameters, strict=True):
                inputs.append(self._add(f"{layer.name}.{name}", (1,), partial(np.full, 1, value)))
        return inputs

    def _columns(self, layer: Layer) -> tuple[int]:
        return (self._source[layer.weight].shape[0],)

    def _tables(self, inputs: list[str]) -> list[str]:
        return [*inputs, *(self._quantise(table) for table in inputs[1:])]

    def _quantise(self, weight: str) -> str:
        """Makes a weight integers; returns the name of its scales."""
        shape = tuple(self._source[weight].shape)
        self._add(weight, shape, lambda: self._quantised(weight)[0])
        return self._add(f"{_module(weight)}.weight_scale", shape[:1], lambda: self._quantised(weight)[1])

    def _quantised(self, weight: str) -> tuple[Floats, Floats]:
        try:
            return quantise_columns(np.asarray(self._source[weight], dtype=np.float32))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"weight {weight}: {error}") from error

    def _add(self, name: str, shape: tuple[int, ...], make: Callable[[], NDArray[Any]]) -> str:
        self._added[name] = _Computed(shape, make)
        return name
