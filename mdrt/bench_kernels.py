"""How fast kernels are on the layers of the canonical models, next to what this machine can do at most."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mdrt import _core, layers
from mdrt.bench import machine
from mdrt.bundle import write_bundle
from mdrt.errors import InvalidArgumentError, interruptible
from mdrt.formats import FORMATS, check_format

COMPONENT = "layer"
_ACTIVATION_BYTES = {"fp32": 4, "fp16": 2, "int8": 2}
_SECONDS = 0.1  # that a layer is measured for at least, where that takes no more rounds than
_MOST_ROUNDS = 50

_Step = tuple[str, int, int, int, list[float]]  # as _core.Model.profile returns them


def run(
    *,
    filter: str = "",
    formats: Sequence[str] = FORMATS,
    isa: str | None = None,
    threads: int | None = None,
    repeats: int = 5,
) -> dict[str, Any]:
    """Measures the peaks of this machine, then every layer of layers.txt whose text contains `filter`.

    Args:
        filter: a part of a layer's text, such as "conv2d 3x3"; "": all layers.
        formats: of the weights.
        isa: an instruction set, as `mdrt info` lists them; None: MDRT_ISA, else the best.
        threads: None: MDRT_THREADS, else the physical cores.
        repeats: timed runs of each layer at least; the median counts.

    Returns:
        The machine, `peaks` (multiply-adds a second of each kind, bytes read a second) and `layers`: for each layer and
        format what `measure` returns, `calls` in each model, and `share_of_peak`.

    Raises:
        InvalidArgumentError: an unknown format or instruction set, or no layer contains `filter`.
    """
    for format in formats:
        check_format(format)
    chosen = [layer for layer in layers.read() if filter in layer.text]
    if not chosen:
        raise InvalidArgumentError(f"no layer contains {filter!r}; mdrt bench kernels without --filter lists them")
    peaks = {what: _core.measure_peak(what, isa or "", threads or 0) for what in ("fp32", "read")}
    results = []
    for format in formats:
        for layer in chosen:
            result = measure(layer.text, format, isa=isa, threads=threads, repeats=repeats)
            peak = peaks[result["arithmetic"]] * 1e-9
            share = result["gmac_per_second"] / peak if result["gmac"] else None
            results.append({**result, "share_of_peak": share, "calls": dict(layer.calls)})
    return {**machine(isa, threads), "peaks": peaks, "layers": results}


def measure(
    text: str, format: str, *, isa: str | None = None, threads: int | None = None, repeats: int = 5
) -> dict[str, Any]:
    """One layer, planned as in a pipeline. The clock runs inside the library, around its steps only.

    Args:
        text: the layer, in the language of `mdrt.layers`.
        format, isa, threads, repeats: as for `run`.

    Returns:
        layer, format, kernels (of its steps), arithmetic (which peak it is up against), seconds (median), gmac,
        gmac_per_second, and gigabytes_per_second: what it reads and writes at least. A layer that the planner gave to
        its neighbour has no steps and takes no time.

    Raises:
        InvalidArgumentError: the text is no layer, or an unknown format or instruction set.
    """
    experiment = layers.build(text)
    model = open_model(experiment, format, isa=isa, threads=threads)
    with interruptible():
        first = sum(step[4][0] for step in _profile(experiment, model, 1))
        rounds = max(repeats, min(_MOST_ROUNDS, int(_SECONDS / first) if first else 0))
        steps = _profile(experiment, model, rounds)
    seconds = statistics.median([sum(step[4][i] for step in steps) for i in range(rounds)])
    gmac = sum(step[3] for step in steps) * 1e-9
    dtype, weight_bytes = _panel(experiment, model)
    gigabytes = (_ACTIVATION_BYTES[format] * experiment.activations + weight_bytes) * 1e-9
    return {
        "layer": text,
        "format": format,
        "kernels": list(dict.fromkeys(step[0].partition(" ")[0] for step in steps)),
        "arithmetic": "int8" if dtype == "int8" else "fp32",
        "seconds": seconds,
        "gmac": gmac,
        "gmac_per_second": gmac / seconds if seconds else 0.0,
        "gigabytes_per_second": gigabytes / seconds if seconds else 0.0,
    }


def open_model(
    experiment: layers.Experiment, format: str, *, isa: str | None = None, threads: int | None = None
) -> _core.Model:
    """The experiment's graph as COMPONENT of a bundle in memory."""
    buffer = write_bundle(None, {COMPONENT: experiment.graph}, {COMPONENT: experiment.weights}, formats=format)
    assert buffer is not None
    model = _core.Model.from_buffer(buffer, threads=threads or 0)
    model.set_plan_options(isa or "")
    return model


def _profile(experiment: layers.Experiment, model: _core.Model, rounds: int) -> list[_Step]:
    """The steps that are the layer."""
    return [step for step in model.profile(COMPONENT, experiment.feeds, rounds) if step[1] == experiment.main]


def _panel(experiment: layers.Experiment, model: _core.Model) -> tuple[str, int]:
    """Stored format and bytes of the matrix that the layer multiplies with; "", 0: there is none."""
    names = experiment.graph.nodes[experiment.main].inputs
    panels = {
        f"{COMPONENT}/{name}" for name in names if name in experiment.weights and experiment.weights[name].ndim > 1
    }
    return next(((dtype, array.nbytes) for name, dtype, _, array in model.tensors() if name in panels), ("", 0))


def text(found: Mapping[str, Any]) -> str:
    """`run` for people."""
    peaks = found["peaks"]
    lines = [
        f"mdrt {found['version']}, isa {found['isa']}, {found['threads']} threads, {found['cpu']}",
        f"compiler {found['compiler']}, {found['compiler_flags']}",
        f"peaks: fp32 {peaks['fp32'] * 1e-9:.1f} GMAC/s, memory read {peaks['read'] * 1e-9:.1f} GB/s",
        f"{'ms':>9} {'GMAC/s':>7} {'peak':>6} {'GB/s':>6}  format  layer",
    ]
    for layer in found["layers"]:
        share = "" if layer["share_of_peak"] is None else f"{layer['share_of_peak']:.1%}"
        speed = f"{layer['gmac_per_second']:.1f}" if layer["gmac"] else ""
        lines.append(
            f"{1e3 * layer['seconds']:9.3f} {speed:>7} {share:>6} {layer['gigabytes_per_second']:6.1f}  "
            f"{layer['format']:<6}  {layer['layer']}"
        )
    return "\n".join(lines)
