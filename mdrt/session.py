"""One component of a bundle: arrays in, arrays out, with the names of Optimum's ONNX exports."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdrt import _core
from mdrt.errors import InvalidArgumentError, interruptible
from mdrt.graph import Graph
from mdrt.interpreter import Interpreter

if TYPE_CHECKING:
    from typing_extensions import Self

_DTYPES: dict[str, type[np.generic]] = {"fp32": np.float32, "int32": np.int32}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output, NCHW if it has four dimensions; each is a size, a symbol ("batch"), or None if it follows."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str


class Session:
    """Runs one component of a bundle.

    Components: `text_encoder` (`input_ids` -> `last_hidden_state`), `unet` (`sample`, `timestep`,
    `encoder_hidden_states` -> `out_sample`), `vae_decoder` (`latent_sample` -> `sample`), and where the bundle has it
    `vae_encoder` (`sample` -> `latent_parameters`, mean then log-variance).

    Args:
        path: a bundle (`.mdrt`).
        component: its name.
        threads: of the native backend; None: MDRT_THREADS, else the physical cores.
        backend: "native", or "reference": NumPy, slow and readable.

    Raises:
        FileError, BundleError, VersionError: the file cannot be read or is not a usable bundle.
        InvalidArgumentError: there is no such component or backend.
    """

    def __init__(
        self, path: str | PathLike[str], component: str, *, threads: int | None = None, backend: str = "native"
    ) -> None:
        if backend not in ("native", "reference"):
            raise InvalidArgumentError(f"backend {backend!r} is not one of native, reference")
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise InvalidArgumentError(f"threads must be a positive integer, not {threads!r}")
        self.path = os.fspath(path)
        self.component = component
        self._model: _core.Model | None = _core.Model(self.path, threads=threads or 0)
        components = json.loads(self._model.metadata())["components"]
        if component not in components:
            raise InvalidArgumentError(f"{self.path} has no component {component!r}; it has {', '.join(components)}")
        graph = components[component]
        self.inputs = [
            TensorInfo(entry["name"], _channels_second(tuple(entry["shape"])), _DTYPES[entry["dtype"]].__name__)
            for entry in graph["inputs"]
        ]
        self.outputs = [
            TensorInfo(
                name, _channels_second(("batch", *(size or None for size in shape[1:]))), _DTYPES[dtype].__name__
            )
            for name, dtype, shape in self._model.outputs(component)
        ]
        self._interpreter = _reference(self._model, component, graph) if backend == "reference" else None

    def __repr__(self) -> str:
        return f"Session({self.path!r}, {self.component!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the memory. May be called twice."""
        self._model = None
        self._interpreter = None

    def cancel(self) -> None:
        """Makes a running `run` raise `Cancelled`. From any thread."""
        if self._model is not None:
            self._model.cancel()

    def run(self, output_names: Sequence[str] | None = None, **inputs: Any) -> dict[str, NDArray[np.float32]]:
        """Computes the outputs for a batch of any size.

        Args:
            output_names: outputs or inner values of the graph; None: all outputs.
            inputs: an array for every input, NCHW; `timestep` may be one number for the whole batch.

        Returns:
            float32 arrays by name; four-dimensional ones are NCHW.

        Raises:
            InvalidArgumentError: a missing, unknown or misshapen input, an unknown output, or the session is closed.
            Cancelled: by `cancel`, or Ctrl-C (`Interrupted`).
            MemoryLimitError: the shapes need more memory than there is.
        """
        if self._model is None:
            raise InvalidArgumentError("the session is closed; open another one")
        names = [output.name for output in self.outputs] if output_names is None else list(output_names)
        feeds = self._feeds(inputs)
        if self._interpreter is not None:
            results = self._interpreter.run(feeds, names)
        else:
            with interruptible():
                results = self._model.run(self.component, feeds, names)
        return {name: _to_nchw(array) for name, array in results.items()}

    def _feeds(self, inputs: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        known = [entry.name for entry in self.inputs]
        for name in inputs:
            if name not in known:
                raise InvalidArgumentError(f"{self.component} has no input {name!r}; it has {', '.join(known)}")
        missing = [name for name in known if name not in inputs]
        if missing:
            raise InvalidArgumentError(f"{self.component} needs the input {missing[0]!r}")
        feeds = {entry.name: _as_input(entry, inputs[entry.name]) for entry in self.inputs}
        batch = max((array.shape[0] for array in feeds.values() if array.ndim > 1), default=1)
        return {name: np.repeat(a, batch) if a.ndim == 1 and len(a) == 1 else _to_nhwc(a) for name, a in feeds.items()}


def _reference(model: _core.Model, component: str, document: Mapping[str, Any]) -> Interpreter:
    graph = Graph.from_dict(document)
    stored = {name: (dtype, array) for name, dtype, _, array in model.tensors()}
    weights = {}
    for name, weight in graph.weights.items():
        dtype, array = stored[f"{component}/{name}"]
        weights[name] = _core.unpack(weight.kind, dtype, array, weight.shape)
    return Interpreter(graph, weights, backend="reference")


def _channels_second(shape: tuple[int | str | None, ...]) -> tuple[int | str | None, ...]:
    return (shape[0], shape[3], shape[1], shape[2]) if len(shape) == 4 else shape


def _to_nhwc(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def _to_nchw(array: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if array.ndim == 4 else array


def _as_input(entry: TensorInfo, value: Any) -> NDArray[Any]:
    array = np.asarray(value)
    if array.dtype.kind not in ("iu" if entry.dtype == "int32" else "iuf"):
        raise InvalidArgumentError(f"{entry.name}: {entry.dtype} is needed, not {array.dtype}")
    if len(entry.shape) == 1 and array.ndim == 0:
        array = array[np.newaxis]
    if array.ndim != len(entry.shape):
        raise InvalidArgumentError(f"{entry.name}: the shape {list(entry.shape)} is needed, not {list(array.shape)}")
    limits = np.iinfo(np.int32)
    if entry.dtype == "int32" and array.size and (array.min() < limits.min or array.max() > limits.max):
        raise InvalidArgumentError(f"{entry.name}: a number is outside of int32")
    return np.ascontiguousarray(array, dtype=entry.dtype)
