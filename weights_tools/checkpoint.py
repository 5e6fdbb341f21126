"""Reads diffusers pipeline directories: configurations, and weights tensor by tensor (safetensors, also sharded)."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import ConversionError, FileError
from mdrt.graph import Graph

_WEIGHT_FILES = ("diffusion_pytorch_model", "model")
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
# Buffers that older checkpoints carry and nothing reads.
_IGNORED = ("position_ids",)
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

Config = TypeVar("Config")


class Checkpoint:
    """A pipeline directory; nothing but its small JSON files is read until a weight is asked for.

    Raises:
        FileError: it is no directory, or a file cannot be read.
        ConversionError: it is not a diffusers pipeline directory.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise FileError(f"{self.path} is not a directory; name the folder that holds model_index.json")
        if not (self.path / "model_index.json").is_file():
            raise ConversionError(f"{self.path} holds no model_index.json; name a diffusers pipeline directory")

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file below the directory."""
        return read_json(self.path / name)

    def config(
        self, component: str, cls: type[Config], class_names: Mapping[str, str], ignored: tuple[str, ...]
    ) -> Config:
        """`component`/config.json as a `cls`, whose fields name the keys.

        Args:
            class_names: the accepted values, by key: `_class_name` or `model_type`.
            ignored: further keys that do not change what the network computes; keys like `_name` never do.

        Raises:
            ConversionError: another class of network, an unknown key, or a value of a wrong type.
        """
        where = f"{component}/config.json"
        document = self.json(where)
        for key, expected in class_names.items():
            if document.get(key) != expected:
                raise ConversionError(f"{where}: {key} is {document.get(key)!r}; only {expected!r} can be converted")
        fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        known = fields | set(ignored) | set(class_names)
        for key in document:
            if key not in known and not key.startswith("_"):
                raise ConversionError(f"{where}: the key {key!r} is unknown to this version, so the network may differ")
        return make_config(cls, {key: value for key, value in document.items() if key in fields}, where)

    def weights(self, component: str) -> TensorFiles:
        """The weights of a component."""
        return TensorFiles(self.path / component)


class TensorFiles:
    """The tensors of one component folder, from one safetensors file or the shards of its index.

    Raises:
        ConversionError: there is no weight file, or one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._entries: dict[str, tuple[Path, str, tuple[int, ...], int]] = {}
        for file in _weight_files(folder):
            self._read_header(file)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as the file states it."""
        return self._entries[name][2]

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32, a new array."""
        file, dtype, shape, offset = self._entries[name]
        if dtype not in _DTYPES:
            raise ConversionError(f"{file}: tensor {name} is {dtype}; weights must be F32, F16 or BF16")
        stored = np.memmap(file, dtype=_DTYPES[dtype], mode="r", offset=offset, shape=shape or (1,))
        if dtype == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return np.array(stored, dtype=np.float32)

    def _read_header(self, file: Path) -> None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(file), framework="numpy"):  # checks sizes, offsets and dtypes
                pass
            with open(file, "rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size))
        except (OSError, SafetensorError, ValueError) as error:
            raise ConversionError(f"{file} is not a readable safetensors file: {error}") from error
        for name, entry in header.items():
            if name != "__metadata__" and not name.endswith(_IGNORED):
                if name in self._entries:
                    raise ConversionError(f"{file}: tensor {name} is also in {self._entries[name][0].name}")
                offset = 8 + size + entry["data_offsets"][0]
                self._entries[name] = (file, entry["dtype"], tuple(entry["shape"]), offset)


@dataclass(frozen=True)
class LazyTensor:
    """A weight in the shape the graph demands, read whenever it is made an array, and not kept."""

    files: TensorFiles
    source: str
    shape: tuple[int, ...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self.files.read(self.source).reshape(self.shape).astype(dtype or np.float32, copy=False)


class CheckpointWeights(Mapping[str, LazyTensor]):
    """The weights of `graph` by their names there.

    Every tensor whose name starts with `prefixes` must be used, every weight be there in the shape the graph demands;
    a 1x1 convolution's weight may stand for a matrix. The prefix `text_model.` and the attention names of old
    autoencoders are translated.

    Raises:
        ConversionError: a missing, surplus or misshapen tensor.
    """

    def __init__(self, graph: Graph, files: TensorFiles, prefixes: tuple[str, ...] = ("",)) -> None:
        self._graph = graph
        self._files = files
        self._sources = {name: self._source(name) for name in graph.weights}
        surplus = set(files) - set(self._sources.values())
        for name in sorted(surplus):
            if name.startswith(prefixes):
                raise ConversionError(
                    f"{files.folder}: tensor {name} has no place in the network that config.json describes"
                )

    def __iter__(self) -> Iterator[str]:
        return iter(self._graph.weights)

    def __len__(self) -> int:
        return len(self._graph.weights)

    def __getitem__(self, name: str) -> LazyTensor:
        return LazyTensor(self._files, self._sources[name], self._graph.weights[name].shape)

    def _source(self, name: str) -> str:
        spellings = [name, f"text_model.{name}"]
        for new, old in _OLD_ATTENTION.items():
            if f".{new}." in name:
                spellings.append(name.replace(f".{new}.", f".{old}."))
        for spelling in spellings:
            if spelling in self._files:
                self._check_shape(name, spelling)
                return spelling
        raise ConversionError(f"{self._files.folder}: tensor {name} is missing, which config.json demands")

    def _check_shape(self, name: str, source: str) -> None:
        expected, weight = self._graph.weights[name].shape, self._graph.weights[name]
        accepted = [expected]
        if weight.kind == "depthwise":
            accepted = [(expected[0], 1, *expected[1:])]
        elif weight.kind == "panel" and len(expected) == 2:
            accepted.append((*expected, 1, 1))
        if self._files.shape(source) not in accepted:
            raise ConversionError(
                f"{self._files.folder}: tensor {source} is {list(self._files.shape(source))}, "
                f"but config.json demands {list(accepted[0])}"
            )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConversionError: no such file, or no JSON object in it.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversionError(f"{path} is missing or cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConversionError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ConversionError(f"{path} holds no JSON object")
    return document


def make_config(cls: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """A configuration dataclass from JSON values: whole numbers from 0, numbers, booleans, words, or lists of these.

    Raises:
        ConversionError: a value of a wrong type.
    """
    hints = typing.get_type_hints(cls)
    return cls(**{key: _convert_value(hints[key], value, f"{where}: {key}") for key, value in values.items()})


def _convert_value(hint: Any, value: Any, where: str) -> Any:
    element, *rest = typing.get_args(hint) or (hint,)
    if value is None and type(None) in rest:
        return None
    is_list = typing.get_origin(hint) is tuple
    entries = value if is_list else [value]
    if not isinstance(entries, (list, tuple)) or not all(_is_a(entry, element) for entry in entries):
        kind = {int: "whole numbers from 0", float: "finite numbers", bool: "true or false", str: "words"}[element]
        raise ConversionError(f"{where} is {value!r}; it must be {'a list of ' if is_list else 'of '}{kind}")
    return tuple(entries) if is_list else element(value)


def _is_a(value: Any, element: type) -> bool:
    if element is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if element is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31
    return isinstance(value, element)


def _weight_files(folder: Path) -> list[Path]:
    for stem in _WEIGHT_FILES:
        for suffix in ("", ".fp16", ".bf16"):
            file = folder / f"{stem}{suffix}.safetensors"
            if file.is_file():
                return [file]
            index = folder / f"{stem}.safetensors.index{suffix}.json"
            if index.is_file():
                return _shards(index)
    raise ConversionError(
        f"{folder} holds no weights: {' or '.join(f'{stem}.safetensors' for stem in _WEIGHT_FILES)} is needed"
    )


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ConversionError(f"{index}: weight_map is missing or empty")
    files = []
    for name in sorted({str(value) for value in names.values()}):
        if Path(name).name != name or not (index.parent / name).is_file():
            raise ConversionError(f"{index}: shard {name!r} is not a file in the same folder")
        files.append(index.parent / name)
    return files
