"""How long the stages of a model take on this machine. Works on any bundle; the inputs are random."""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt import _core, models, profile
from mdrt.errors import InvalidArgumentError

STAGES = ("text_encoder", "unet", "vae_decoder")


def run(
    stage: str,
    *,
    model: str | None = None,
    width: int | None = None,
    height: int | None = None,
    threads: int | None = None,
    max_memory: int | None = None,
    isa: str | None = None,
    repeats: int = 5,
    steps: bool = False,
) -> dict[str, Any]:
    """Times each stage (or one) after a run to warm up: one prompt, one picture, no guidance.

    Args:
        stage: "all", "text_encoder", "unet" or "vae_decoder".
        model: a bundle; None: the built-in model.
        width, height: pixels; None: the model's own.
        threads, max_memory: as in `Pipeline`.
        isa: an instruction set, as `mdrt info` lists them; None: MDRT_ISA, else the best.
        repeats: timed runs; the median counts.
        steps: also profile the steps of each stage's plan (`mdrt.profile`).

    Returns:
        For every stage seconds (median, minimum), GMAC and GMAC/s; the time to open, peak memory, ISA and threads.

    Raises:
        InvalidArgumentError: the bundle lacks the stage or a pipeline, or the size does not fit.
    """
    path = models.builtin_path() if model is None else model
    begin = time.perf_counter()
    opened = _core.Model(path, threads=threads or 0, max_memory=max_memory or 0)
    open_seconds = time.perf_counter() - begin
    if isa is not None:
        opened.set_plan_options(isa)
    document = json.loads(opened.metadata())
    stages = [name for name in STAGES if name in document["components"]] if stage == "all" else [stage]
    for name in stages:
        if name not in document["components"]:
            raise InvalidArgumentError(f"{path} has no component {name}; it has {', '.join(document['components'])}")
    bindings = _bindings(document, width, height)
    results: dict[str, Any] = {}
    anonymous = 0
    for name in stages:
        graph = document["components"][name]
        feeds = {entry["name"]: _random(entry, bindings) for entry in graph["inputs"]}
        results[name] = _time(opened, name, feeds, [entry["name"] for entry in graph["outputs"]], repeats)
        anonymous = max(anonymous, _status_bytes("RssAnon") or 0)
        if steps:
            results[name]["profile"] = profile.run(opened, name, graph, feeds, repeats)
    return {
        "model": path,
        **machine(isa, threads),
        "open_seconds": open_seconds,
        "stages": results,
        "peak_rss_bytes": _status_bytes("VmHWM"),
        "anonymous_rss_bytes": anonymous or None,
    }


def machine(isa: str | None, threads: int | None) -> dict[str, Any]:
    """What a measurement depends on: version, isa, compiler and its flags, CPU, threads."""
    info = _core.build_info()
    rows = {row["name"]: row for row in info["isas"]}
    name = isa or next((row["name"] for row in info["isas"] if row["chosen"]), None)
    flags = (info["compiler_flags"], rows[name]["flags"] if name in rows else "")
    return {
        "version": info["version"],
        "isa": name,
        "threads": threads or int(os.environ.get("MDRT_THREADS") or info["usable_cores"]),
        "cpu": _cpu(),
        "compiler": info["compiler"],
        "compiler_flags": " ".join(filter(None, flags)),
    }


def _cpu() -> str | None:
    """The name of the processor, or of the board where the system does not know the processor's."""
    for path, key in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", "")):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                for line in file:
                    if line.startswith(key):
                        return line.removeprefix(key).strip(" \t\n\0:")
        except OSError:
            continue
    return None


def _bindings(document: dict[str, Any], width: int | None, height: int | None) -> dict[str, int]:
    """Sizes of the graphs' symbols for one picture."""
    pipeline = document.get("pipeline") or {"width": 64, "height": 64, "vae_scale_factor": 8}
    factor = pipeline["vae_scale_factor"]
    sizes = {"width": width or pipeline["width"], "height": height or pipeline["height"]}
    for name, size in sizes.items():
        if size % factor:
            raise InvalidArgumentError(f"{name} {size} is not a multiple of {factor}")
    length = (document.get("tokenizer") or {"model_max_length": 77})["model_max_length"]
    return {**{name: size // factor for name, size in sizes.items()}, "batch": 1, "length": length}


def _size(entry: dict[str, Any], dimension: int | str, bindings: dict[str, int]) -> int:
    """Symbols are called `batch`, and `height`, `width` and `length` with or without a word in front."""
    if isinstance(dimension, int):
        return dimension
    size = bindings.get(dimension.rpartition("_")[2])
    if size is None:
        raise InvalidArgumentError(f"input {entry['name']}: no size is known for the dimension {dimension!r}")
    return size


def _random(entry: dict[str, Any], bindings: dict[str, int]) -> NDArray[Any]:
    shape = [_size(entry, dimension, bindings) for dimension in entry["shape"]]
    if entry["dtype"] == "int32":
        return np.zeros(shape, dtype=np.int32)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _time(
    model: _core.Model, component: str, feeds: dict[str, NDArray[Any]], outputs: list[str], repeats: int
) -> dict[str, Any]:
    begin = time.perf_counter()
    description = model.describe_plan(component, feeds)
    plan_seconds = time.perf_counter() - begin
    match = re.search(r"([\d.]+) GMAC", description)
    gmac = float(match[1]) if match else 0.0
    seconds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        model.run(component, feeds, outputs)
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[1:])
    return {
        "seconds": median,
        "seconds_minimum": min(seconds[1:]),
        "seconds_first": seconds[0],
        "plan_seconds": plan_seconds,
        "gmac": gmac,
        "gmac_per_second": gmac / median,
        "shapes": {name: list(array.shape) for name, array in feeds.items()},
    }


def _status_bytes(key: str) -> int | None:
    """A line of /proc/self/status: VmHWM is the peak of this process, RssAnon its anonymous memory now."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    return None


def text(results: dict[str, Any]) -> str:
    """`run` for people."""
    machine = f"isa {results['isa']}, {results['threads']} threads"
    lines = [f"{results['model']}: {machine}, opened in {results['open_seconds']:.3f} s"]
    for name, stage in results["stages"].items():
        lines.append(
            f"  {name:<12} {stage['seconds']:9.4f} s  {stage['gmac']:9.3f} GMAC  {stage['gmac_per_second']:8.1f} GMAC/s"
        )
        if "profile" in stage:
            lines.append(profile.text(stage["profile"]))
    for key, label in (
        ("peak_rss_bytes", "peak memory (VmHWM)"),
        ("anonymous_rss_bytes", "anonymous memory (RssAnon)"),
    ):
        if results[key] is not None:
            lines.append(f"  {label}: {results[key] / 1e6:.0f} MB")
    return "\n".join(lines)
