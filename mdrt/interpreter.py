"""Runs any graph of the op table: backend "native" (the C++ engine) or "reference" (NumPy, float64 inside each op)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import InvalidArgumentError
from mdrt.graph import Graph, Input
from mdrt.ops import REFERENCES

_DTYPES: dict[str, type[np.generic]] = {"fp32": np.float32, "int32": np.int32}


class Interpreter:
    """One graph with its weights.

    Args:
        graph: the plain graph.
        weights: float arrays by name in checkpoint layout: panel (out, in) or (out, in, kernel_h, kernel_w), vector
            (n), table (rows, n), depthwise (channels, kernel_h, kernel_w).
        backend: "native" or "reference".
        threads: threads of the native backend; None: MDRT_THREADS, else the physical cores.
        format: "fp32", or "fp16": panels and tables are stored as halves.

    Raises:
        InvalidArgumentError: an unknown backend or format, or a missing, surplus or misshapen weight.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Mapping[str, NDArray[Any]],
        backend: str = "native",
        threads: int | None = None,
        format: str = "fp32",
    ) -> None:
        if backend not in ("native", "reference"):
            raise InvalidArgumentError(f"backend {backend!r} is not one of native, reference")
        if format not in ("fp32", "fp16"):
            raise InvalidArgumentError(f"format {format!r} is not one of fp32, fp16")
        _check_weights(graph, weights)
        self.graph = graph
        self._weights = weights
        self._format = format

    def run(self, feeds: Mapping[str, NDArray[Any]], outputs: Sequence[str] | None = None) -> dict[str, NDArray[np.float32]]:
        """Computes values of the graph.

        Args:
            feeds: an array for every input, channels last, of its dtype (float32 or int32).
            outputs: names of outputs, nodes or inputs; None: the graph's outputs.

        Returns:
            float32 arrays by name, channels last.

        Raises:
            InvalidArgumentError: a missing, surplus or misshapen feed, or an unknown output.
        """
        values = self._checked_feeds(feeds)
        names = {name: self.graph.outputs.get(name, name) for name in (self.graph.outputs if outputs is None else outputs)}
        known = set(values) | {node.name for node in self.graph.nodes}
        unknown = [name for name, value in names.items() if value not in known]
        if unknown:
            raise InvalidArgumentError(f"there is no value {unknown[0]!r} in this graph")
        return self._run_reference(values, names)

    def _run_reference(self, values: dict[str, NDArray[Any]], names: Mapping[str, str]) -> dict[str, NDArray[np.float32]]:
        last_use = {value: index for index, node in enumerate(self.graph.nodes) for value in node.inputs}
        wanted = set(names.values())
        for index, node in enumerate(self.graph.nodes):
            inputs = [self._weight(name) if name in self.graph.weights else values[name] for name in node.inputs]
            values[node.name] = REFERENCES[node.op](inputs, node.attributes).astype(np.float32)
            for name in (*node.inputs, node.name):
                if last_use.get(name, -1) <= index and name not in wanted:
                    values.pop(name, None)
            if wanted <= values.keys():
                break
        return {name: values[value].astype(np.float32) for name, value in names.items()}

    def _weight(self, name: str) -> NDArray[Any]:
        """The weight's values as the format stores them."""
        array = np.asarray(self._weights[name], dtype=np.float32)
        if self._format == "fp16" and self.graph.weights[name].kind in ("panel", "table"):
            array = array.astype(np.float16)
        return array

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


def _check_shape(entry: Input, shape: tuple[int, ...], symbols: dict[str, int]) -> None:
    fits = len(shape) == len(entry.shape)
    for size, dimension in zip(shape, entry.shape, strict=False):
        known = symbols.setdefault(dimension, size) if isinstance(dimension, str) else dimension
        fits = fits and size == known and size >= 1
    if not fits:
        expected = ", ".join(f"{d} = {symbols[d]}" if isinstance(d, str) and d in symbols else str(d) for d in entry.shape)
        raise InvalidArgumentError(f"input {entry.name}: the shape is {list(shape)}, not [{expected}]")


def _check_weights(graph: Graph, weights: Mapping[str, NDArray[Any]]) -> None:
    for name in weights:
        if name not in graph.weights:
            raise InvalidArgumentError(f"weight {name} is not used by the graph")
    for name in graph.weights:
        if name not in weights:
            raise InvalidArgumentError(f"weight {name} is missing")
