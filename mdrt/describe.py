"""What is in a bundle, in a picture and in this installation: dictionaries for programs, text for people."""

from __future__ import annotations

import json
import math
import os
from os import PathLike
from typing import TYPE_CHECKING, Any

from mdrt.errors import Error, FileError

if TYPE_CHECKING:
    from mdrt.graph import Graph

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def file(path: str | PathLike[str], *, verify: bool = False) -> dict[str, Any]:
    """A bundle (kind "bundle") or a picture (kind "picture": its parameters); `verify` compares a bundle's checksums.

    Raises:
        FileError: the file cannot be read.
        BundleError, VersionError: it is not a usable bundle, or a checksum differs.
        InvalidArgumentError: it is a picture that says nothing about how it was made.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as opened:
            signature = opened.read(len(_PNG_SIGNATURE))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    if signature == _PNG_SIGNATURE:
        from mdrt import png

        return {"kind": "picture", "file": path, **png.read(path)}
    return _bundle(path, verify)


def _bundle(path: str, verify: bool) -> dict[str, Any]:
    from mdrt import _core
    from mdrt.graph import Graph

    model = _core.Model(path)
    if verify:
        model.verify()
    document = json.loads(model.metadata())
    tensors = {name: (dtype, array.nbytes) for name, dtype, _, array in model.tensors()}
    components = {}
    for name, graph in document["components"].items():
        stored = {weight: tensors[f"{name}/{weight}"] for weight in graph["weights"]}
        components[name] = _component(Graph.from_dict(graph), stored)
    return {
        "kind": "bundle",
        "file": path,
        "file_bytes": os.path.getsize(path),
        "format": document["format"],
        "components": components,
        "pipeline": document.get("pipeline"),
        "tokenizer": document.get("tokenizer"),
        "provenance": document.get("provenance"),
        "verified": verify,
    }


def _component(graph: Graph, stored: dict[str, tuple[str, int]]) -> dict[str, Any]:
    """`stored`: dtype and bytes of each weight."""
    from mdrt.quantise import layers

    sizes: dict[str, int] = {}
    for dtype, size in stored.values():
        sizes[dtype] = sizes.get(dtype, 0) + size
    formats: dict[str, list[str]] = {}
    added: set[str] = set()  # what int8 adds to a model is no parameter of it
    for layer in layers(graph).values():
        format = "int8_weights" if layer.has_only_int8_weights else stored[layer.weight][0]
        formats.setdefault(format, []).append(layer.name)
        added.update(name for node in layer.nodes for name in node.inputs[3:])
    return {
        "parameters": sum(math.prod(weight.shape) for name, weight in graph.weights.items() if name not in added),
        "bytes": sum(sizes.values()),
        "bytes_by_dtype": sizes,
        "layers_by_format": formats,
        "nodes": len(graph.nodes),
        "inputs": {entry.name: list(entry.shape) for entry in graph.inputs},
        "outputs": list(graph.outputs),
    }


def file_text(found: dict[str, Any]) -> str:
    """`file` for people."""
    if found["kind"] == "picture":
        lines = [found["parameters"]] if "parameters" in found else []
        if "mdrt" in found:
            lines += ["", "mdrt: " + json.dumps(found["mdrt"], ensure_ascii=False)]
        return "\n".join(lines).strip()
    lines = [
        f"{found['file']}: bundle, format {'.'.join(map(str, found['format']))}, {_megabytes(found['file_bytes'])}"
    ]
    for name, component in found["components"].items():
        sizes = " + ".join(f"{dtype} {_megabytes(size)}" for dtype, size in component["bytes_by_dtype"].items())
        inputs = ", ".join(f"{key} [{', '.join(map(str, shape))}]" for key, shape in component["inputs"].items())
        lines.append(f"  {name}: {component['parameters'] / 1e6:.1f} M parameters, {sizes}, {component['nodes']} nodes")
        lines += [f"    {line}" for line in _layers_text(component["layers_by_format"])]
        lines.append(f"    {inputs} -> {', '.join(component['outputs'])}")
    pipeline = found["pipeline"]
    if pipeline:
        lines.append(
            f"  pictures: {pipeline['width']}x{pipeline['height']}, latents of {pipeline['latent_channels']} channels"
        )
        for schedule in pipeline["schedules"]:
            default = " (default)" if schedule is pipeline["schedules"][0] else ""
            steps, guidance = schedule["num_inference_steps"], schedule["guidance_scale"]
            lines.append(f"  schedule: {steps} x {schedule['scheduler']}, guidance {guidance:g}{default}")
    if found["tokenizer"]:
        tokenizer = found["tokenizer"]
        lines.append(f"  tokenizer: {tokenizer['vocab_size']} tokens, at most {tokenizer['model_max_length']} a prompt")
    lines += [f"  {key}: {value}" for key, value in (found["provenance"] or {}).items()]
    if found["verified"]:
        lines.append("  checksums: all match")
    return "\n".join(lines)


def _layers_text(formats: dict[str, list[str]]) -> list[str]:
    """How many layers each format has, the most frequent one first; the layers of the others by name."""
    order = sorted(formats, key=lambda word: -len(formats[word]))
    if not order:
        return []
    counts = [f"{format} {len(formats[format])}" for format in order]
    return [f"layers: {', '.join(counts)}", *(f"{format}: {', '.join(formats[format])}" for format in order[1:])]


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"


def installation() -> dict[str, Any]:
    """Version, library, instruction sets and this machine's limits."""
    import platform

    import mdrt
    from mdrt import _core, models

    try:
        builtin: str | None = models.builtin_path()
    except FileError:
        builtin = None
    try:
        library: str | None = mdrt.get_library()
    except Error:
        library = None
    return {
        "version": mdrt.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "library": library,
        "builtin_model": builtin,
        "memory_available_bytes": _memory_available(),
        **{key: value for key, value in _core.build_info().items() if key != "version"},
    }


def _memory_available() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as meminfo:
            for line in meminfo:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def installation_text(found: dict[str, Any]) -> str:
    """`installation` for people."""
    lines = [f"mdrt {found['version']}, Python {found['python']}, {found['machine']}"]
    for key in ("compiler", "compiler_flags", "cpu_features", "usable_cores", "library", "builtin_model"):
        lines.append(f"{key.replace('_', ' ')}: {found.get(key)}")
    if found["memory_available_bytes"]:
        lines.append(f"memory available: {_megabytes(found['memory_available_bytes'])}")
    for isa in found["isas"]:
        state = "chosen" if isa["chosen"] else "usable" if isa["usable"] else "not executable on this CPU"
        lines.append(f"isa {isa['name']}: {state}")
    return "\n".join(lines)
