"""Light checkpoints: pipeline directories in 16 bits, of which each file is small enough for a repository."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdrt.errors import WriteError
from weights_tools.pipeline_files import weights_stem, write_config, write_index, write_json

SHARD_BYTES = 15 << 20
_HEAD_BYTES = 160  # what the head of a file says of one tensor, at most


@dataclass(frozen=True)
class Part:
    """One component: what config.json says, and its network, if it has one."""

    config: Mapping[str, Any]
    weights: Mapping[str, Any] | None = None


def write_pipeline(path: Path, parts: Mapping[str, Part], tokenizer: Path | None = None) -> None:
    """Writes a diffusers pipeline directory in float16; one that is there is replaced when all went well.

    Args:
        parts: components by their names; weights as state dicts of any float dtype and device.
        tokenizer: the folder whose files become the tokenizer.

    Raises:
        WriteError: the directory cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
        try:
            names = [*parts, *(["tokenizer"] if tokenizer else [])]
            write_index(folder, names)
            for name, part in parts.items():
                write_config(folder, name, part.config)
                if part.weights is not None:
                    _write_weights(folder / name, weights_stem(name), part.weights)
            if tokenizer:
                shutil.copytree(tokenizer, folder / "tokenizer")
            folder.chmod(0o755)
            if path.exists():
                path.rename(folder.with_suffix(".old"))
            folder.rename(path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.rmtree(folder.with_suffix(".old"), ignore_errors=True)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def _write_weights(folder: Path, stem: str, weights: Mapping[str, Any]) -> None:
    """One safetensors file, or several and their index, none above `SHARD_BYTES`."""
    import torch

    shards: list[dict[str, Any]] = [{}]
    room = SHARD_BYTES
    for name, value in weights.items():
        tensor = value.detach().to("cpu", torch.float16).contiguous()
        needed = tensor.nbytes + _HEAD_BYTES
        if needed > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        room -= needed
        shards[-1][name] = tensor
    if len(shards) == 1:
        _save(folder / f"{stem}.safetensors", shards[0])
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        _save(folder / file, shard)
        places.update(dict.fromkeys(shard, file))
    size = sum(tensor.nbytes for shard in shards for tensor in shard.values())
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})


def _save(path: Path, tensors: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors lets only the owner read
