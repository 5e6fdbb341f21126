"""Writes bundles (docs/format.md), tensor by tensor. Reading them is csrc/bundle.cc's business alone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import InvalidArgumentError
from mdrt.files import replacing
from mdrt.formats import ComponentFormat
from mdrt.graph import Graph
from mdrt.quantise import LazyArray, Stored, Weights, layers, store_component

_ALIGNMENT = 64
_HEADER_CRC = "header_crc32c"
_FORMAT_DTYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8, "int32": np.int32}
_DTYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32", "uint8": "U8", "float64": "F64"}


@dataclass(frozen=True)
class _Tensor:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    make: Callable[[], NDArray[Any]]

    @property
    def size_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_bundle(
    destination: str | os.PathLike[str] | None,
    graphs: Mapping[str, Graph],
    weights: Mapping[str, Weights],
    *,
    formats: str | ComponentFormat | Mapping[str, str | ComponentFormat] = "fp32",
    pipeline: Mapping[str, Any] | None = None,
    schedules: Mapping[int, NDArray[np.float64]] | None = None,
    tokenizer: Mapping[str, Any] | None = None,
    vocabulary: bytes = b"",
    merges: NDArray[np.int32] | None = None,
    provenance: Mapping[str, str] | None = None,
) -> NDArray[np.uint8] | None:
    """Writes a bundle of format [1, 0]; [1, 1] where a layer is int8, [1, 2] where one has int8 weights only.

    Args:
        destination: a path (replaced only when everything is written), or None for a bundle in memory.
        graphs: the plain graph of each component; int8 layers get their further inputs here.
        weights: per component, each weight of its graph in checkpoint layout, converted to float32 one at a time.
        formats: one of LAYER_FORMATS for all layers, or more exactly; for all components, or by component.
        pipeline: the `pipeline` document without rows.
        schedules: by number of steps, the rows (calls, 14) of each entry of `pipeline["schedules"]`.
        tokenizer: the `tokenizer` document.
        vocabulary: its tokens, each followed by a line feed.
        merges: its merges (count, 2).
        provenance: source, license, converter.

    Returns:
        The bytes, 64-byte aligned, when `destination` is None.

    Raises:
        InvalidArgumentError: an invalid graph, a weight that does not fit its graph or format, or an impossible format.
        WriteError: the file cannot be written; nothing half-written stays.
    """
    components = {name: _stored(name, graph, weights.get(name, {}), formats) for name, graph in graphs.items()}
    document: dict[str, Any] = {
        "format": [1, max(map(_format_minor, components.values()))],
        "components": {name: component.graph.to_dict() for name, component in components.items()},
    }
    if pipeline is not None:
        document["pipeline"] = dict(pipeline)
    if tokenizer is not None:
        document["tokenizer"] = dict(tokenizer)
    document["provenance"] = {"source": "", "license": "", "converter": "", **(provenance or {})}
    tensors = [tensor for name, component in components.items() for tensor in _weight_tensors(name, component)]
    tensors += _schedule_tensors(schedules or {})
    if tokenizer is not None:
        tensors += _tokenizer_tensors(vocabulary, merges)
    if destination is None:
        return _write_memory(document, tensors)
    _write_file(os.fspath(destination), document, tensors)
    return None


def _format_minor(component: Stored) -> int:
    found = layers(component.graph).values()
    if any(layer.has_only_int8_weights for layer in found):
        return 2
    return int(any(layer.is_quantised for layer in found))


def _stored(
    name: str,
    graph: Graph,
    weights: Weights,
    formats: str | ComponentFormat | Mapping[str, str | ComponentFormat],
) -> Stored:
    for weight in graph.weights.values():
        source = weights.get(weight.name)
        if source is None:
            raise InvalidArgumentError(f"weight {name}/{weight.name} is missing")
        if tuple(source.shape) != weight.shape:
            raise InvalidArgumentError(
                f"weight {name}/{weight.name}: the shape is {list(source.shape)}, not {list(weight.shape)}"
            )
    if isinstance(formats, Mapping):
        if name not in formats:
            raise InvalidArgumentError(f"formats name no format of the component {name}")
        formats = formats[name]
    try:
        stored = store_component(graph, weights, formats)
        stored.graph.validate()
        return stored
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"component {name}: {error}") from error


def _weight_tensors(component: str, stored: Stored) -> Iterator[_Tensor]:
    from mdrt import _core

    for weight in stored.graph.weights.values():
        format = stored.formats[weight.name]
        shape = _core.stored_shape(weight.kind, format, weight.shape)
        name = f"{component}/{weight.name}"
        pack = _packer(stored.weights[weight.name], weight.kind, format, name)
        yield _Tensor(name, np.dtype(_FORMAT_DTYPES[format]), tuple(shape), pack)


def _packer(source: LazyArray | NDArray[Any], kind: str, format: str, name: str) -> Callable[[], NDArray[Any]]:
    def pack() -> NDArray[Any]:
        from mdrt import _core

        try:
            return _core.pack(kind, format, np.ascontiguousarray(np.asarray(source), dtype=np.float32))
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"weight {name}: {error}") from error

    return pack


def _schedule_tensors(schedules: Mapping[int, NDArray[np.float64]]) -> Iterator[_Tensor]:
    for steps, rows in schedules.items():
        stored = np.zeros((len(rows), 16))
        stored[:, : rows.shape[1]] = rows
        yield _constant(f"schedules/{steps}", stored)


def _tokenizer_tensors(vocabulary: bytes, merges: NDArray[np.int32] | None) -> Iterator[_Tensor]:
    stored = np.zeros(_round_up(len(vocabulary), _ALIGNMENT), np.uint8)
    stored[: len(vocabulary)] = np.frombuffer(vocabulary, np.uint8)
    yield _constant("tokenizer/vocabulary", stored)
    if merges is not None and len(merges):
        pairs = np.zeros((_round_up(len(merges), 8), 2), np.int32)
        pairs[: len(merges)] = merges
        yield _constant("tokenizer/merges", pairs)


def _constant(name: str, array: NDArray[Any]) -> _Tensor:
    return _Tensor(name, array.dtype, array.shape, lambda: array)


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _header(document: Mapping[str, Any], tensors: Sequence[_Tensor], checksums: Mapping[str, str]) -> bytes:
    document = {**document, "checksums": checksums}
    entries: dict[str, Any] = {"__metadata__": {"mdrt": json.dumps(document, separators=(",", ":"), allow_nan=False)}}
    entries[_HEADER_CRC] = {"dtype": "U8", "shape": [_ALIGNMENT], "data_offsets": [0, _ALIGNMENT]}
    begin = _ALIGNMENT
    for tensor in tensors:
        end = begin + tensor.size_bytes
        entries[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write_tensors(
    document: Mapping[str, Any], tensors: Sequence[_Tensor], write_at: Callable[[int, memoryview], None]
) -> None:
    """Data first, then the header: a checksum has the same length whatever it says."""
    from mdrt import _core

    offset = len(_header(document, tensors, {tensor.name: "0" * 8 for tensor in tensors})) + _ALIGNMENT
    checksums = {}
    for tensor in tensors:
        data = np.ascontiguousarray(tensor.make()).reshape(-1).data.cast("B")
        if len(data) != tensor.size_bytes:
            raise InvalidArgumentError(f"weight {tensor.name} changed its shape while it was read")
        write_at(offset, data)
        checksums[tensor.name] = f"{_core.crc32c(data):08x}"
        offset += len(data)
    header = _header(document, tensors, checksums)
    seal = _core.crc32c(header).to_bytes(4, "little") + bytes(_ALIGNMENT - 4)
    write_at(0, memoryview(header + seal))


def _write_memory(document: Mapping[str, Any], tensors: Sequence[_Tensor]) -> NDArray[np.uint8]:
    size = len(_header(document, tensors, {tensor.name: "0" * 8 for tensor in tensors})) + _ALIGNMENT
    size += sum(tensor.size_bytes for tensor in tensors)
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    aligned = buffer[start : start + size]

    def write_at(offset: int, data: memoryview) -> None:
        aligned[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    _write_tensors(document, tensors, write_at)
    return aligned


def _write_file(path: str, document: Mapping[str, Any], tensors: Sequence[_Tensor]) -> None:
    with replacing(path) as file:

        def write_at(offset: int, data: memoryview) -> None:
            file.seek(offset)
            file.write(data)

        _write_tensors(document, tensors, write_at)
