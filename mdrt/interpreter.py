"""Runs any graph of the op table: backend "native" (the C++ engine) or "reference" (NumPy, float64 inside each op)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt import _core
from mdrt.bundle import write_bundle
from mdrt.errors import InvalidArgumentError, interruptible
from mdrt.formats import ComponentFormat, stored_values
from mdrt.graph import Graph, Input
from mdrt.ops import REFERENCES
from mdrt.quantise import Weights, store_component

_DTYPES: dict[str, type[np.generic]] = {"fp32": np.float32, "int32": np.int32}
_COMPONENT = "graph"


class Interpreter:
    """One graph with its weights.

    Args:
        graph: the plain graph.
        weights: float arrays by name in checkpoint layout: panel (out, in) or (out, in, kernel_h, kernel_w), vector
            (n), table (rows, n), depthwise (channels, kernel_h, kernel_w).
        backend: "native" or "reference".
        threads: threads of the native backend; None: MDRT_THREADS, else the physical cores.
        format: "fp32"; "fp16": panels and tables are stored as halves; "int8": as integers, which are also what is
            multiplied; or the format of every layer.
        input_ranges: (min, max) of the inputs of int8 layers by layer, when `format` is a word.
        isa: instruction set of the native backend, as `mdrt info` lists them; None: MDRT_ISA, else the best.
        fuse: False: the native backend runs every node by itself.

    Raises:
        InvalidArgumentError: an invalid graph, an unknown backend, format or instruction set, a missing, surplus or
            misshapen weight, or an int8 layer that needs an input range and has none.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        backend: str = "native",
        threads: int | None = None,
        format: str | ComponentFormat = "fp32",
        *,
        input_ranges: Mapping[str, tuple[float, float]] | None = None,
        isa: str | None = None,
        fuse: bool = True,
    ) -> None:
        if backend not in ("native", "reference"):
            raise InvalidArgumentError(f"backend {backend!r} is not one of native, reference")
        if isinstance(format, str):
            format = ComponentFormat(format, input_ranges=input_ranges or {})
        elif input_ranges is not None:
            raise InvalidArgumentError("input_ranges belong into the ComponentFormat, which was given too")
        _check_weights(graph, weights)
        self._stored = store_component(graph, weights, format)
        self._stored.graph.validate()
        self.graph = graph
        self.backend = backend
        self._model = _native_model(graph, weights, format, threads) if backend == "native" else None
        if self._model is not None and (isa is not None or not fuse):
            self._model.set_plan_options(isa or "", fuse)

    def run(
        self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Computes values of the graph.

        Args:
            feeds: an array for every input, channels last, of its dtype (float32 or int32).
            outputs: names of outputs or nodes; None: the graph's outputs.

        Returns:
            float32 arrays by name, channels last.

        Raises:
            InvalidArgumentError: a missing, surplus or misshapen feed, or an unknown output.
        """
        values = self._checked_feeds(feeds)
        names = {
            name: self.graph.outputs.get(name, name) for name in (self.graph.outputs if outputs is None else outputs)
        }
        known = {node.name for node in self.graph.nodes}
        unknown = [name for name, value in names.items() if value not in known]
        if unknown:
            raise InvalidArgumentError(f"there is no value {unknown[0]!r} in this graph")
        if self._model is None:
            return self._run_reference(values, names)
        with interruptible():
            results = self._model.run(_COMPONENT, values, list(dict.fromkeys(names.values())))
        return {name: results[value] for name, value in names.items()}

    def _run_reference(
        self, values: dict[str, NDArray[Any]], names: Mapping[str, str]
    ) -> dict[str, NDArray[np.float32]]:
        graph = self._stored.graph
        last_use = {value: index for index, node in enumerate(graph.nodes) for value in node.inputs}
        wanted = set(names.values())
        for index, node in enumerate(graph.nodes):
            inputs = [self._weight(name) if name in graph.weights else values[name] for name in node.inputs]
            try:
                values[node.name] = REFERENCES[node.op](inputs, node.attributes).astype(np.float32)
            except (ValueError, IndexError) as error:
                shapes = ", ".join(str(list(array.shape)) for array in inputs)
                raise InvalidArgumentError(f"node {node.name}: inputs {shapes} do not fit: {error}") from error
            for name in (*node.inputs, node.name):
                if last_use.get(name, -1) <= index and name not in wanted:
                    values.pop(name, None)
            if wanted <= values.keys():
                break
        return {name: values[value].astype(np.float32) for name, value in names.items()}

    def _weight(self, name: str) -> NDArray[np.float32]:
        weight = self._stored.graph.weights[name]
        return stored_values(self._stored.formats[name], weight, np.asarray(self._stored.weights[name]))

    def _checked_feeds(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        names = [entry.name for entry in self.graph.inputs]
        for name in feeds:
            if name not in names:
                raise InvalidArgumentError(f"there is no input {name!r}; there are {', '.join(names)}")
        symbols: dict[str, int] = {}
        values: dict[str, NDArray[Any]] = {}
        for entry in self.graph.inputs:
            if entry.name not in feeds:
                raise InvalidArgumentError(f"input {entry.name} is missing")
            array = np.ascontiguousarray(feeds[entry.name], dtype=_DTYPES[entry.dtype])
            _check_shape(entry, array.shape, symbols)
            values[entry.name] = array
        return values


def _native_model(graph: Graph, weights: Weights, format: ComponentFormat, threads: int | None) -> _core.Model:
    buffer = write_bundle(None, {_COMPONENT: graph}, {_COMPONENT: weights}, formats=format)
    assert buffer is not None
    return _core.Model.from_buffer(buffer, threads=threads or 0)


def _check_shape(entry: Input, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
    fits = len(shape) == len(entry.shape)
    for size, dimension in zip(shape, entry.shape, strict=False):
        known = symbols.setdefault(dimension, size) if isinstance(dimension, str) else dimension
        fits = fits and size == known and size >= 1
    if not fits:
        expected = ", ".join(
            f"{d} = {symbols[d]}" if isinstance(d, str) and d in symbols else str(d) for d in entry.shape
        )
        raise InvalidArgumentError(f"input {entry.name}: the shape is {list(shape)}, not [{expected}]")


def _check_weights(graph: Graph, weights: Weights) -> None:
    for name in weights:
        if name not in graph.weights:
            raise InvalidArgumentError(f"weight {name} is not used by the graph")
    for name, weight in graph.weights.items():
        if name not in weights:
            raise InvalidArgumentError(f"weight {name} is missing")
        shape = tuple(weights[name].shape)
        if shape != weight.shape:
            raise InvalidArgumentError(f"weight {name}: the shape is {list(shape)}, not {list(weight.shape)}")
