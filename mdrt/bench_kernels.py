"""How fast kernels are on the layers of the canonical models, next to what this machine can do at most."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt import _core, layers, quantise
from mdrt.bench import machine
from mdrt.bundle import write_bundle
from mdrt.errors import InvalidArgumentError, interruptible
from mdrt.formats import FORMATS, LAYER_FORMATS, ComponentFormat, check_format
from mdrt.interpreter import Interpreter

PEAKS = {"fp32": 30, "int8": 30, "read": 8}  # the best of so many passes
_COMPONENT = "layer"
_ACTIVATION_BYTES = {"fp32": 4, "fp16": 2, "int8": 2, "int8_weights": 2}
_SECONDS = 0.1  # that a layer is measured for at least, where that takes no more rounds than
_MOST_ROUNDS = 50


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
        format what `measure` returns, `calls` in each model, and `share_of_peak` (None: it multiplies no matrices).

    Raises:
        InvalidArgumentError: an unknown format or instruction set, or no layer contains `filter`.
    """
    for format in formats:
        check_format(format, LAYER_FORMATS)
    chosen = [layer for layer in layers.read() if filter in layer.text]
    if not chosen:
        raise InvalidArgumentError(f"no layer contains {filter!r}; mdrt bench kernels without --filter lists them")
    peaks = {what: _core.measure_peak(what, isa or "", threads or 0, passes) for what, passes in PEAKS.items()}
    results = []
    for format in formats:
        for layer in chosen:
            result = measure(Probe(layer.text, format, isa=isa, threads=threads), repeats)
            share = result["gmac_per_second"] * 1e9 / peaks[result["arithmetic"]] if result["gmac"] else None
            results.append({**result, "share_of_peak": share, "calls": dict(layer.calls)})
    return {**machine(isa, threads), "peaks": peaks, "layers": results}


class Probe:
    """One layer with random weights, planned as in a pipeline.

    Args:
        text: the layer, in the language of `mdrt.layers`.
        format: of its weights.
        isa, threads: as for `run`.

    Attributes:
        text, format: as given.
        arithmetic: what its products are made of, "fp32" or "int8".
        gigabytes: what it reads and writes at least.
        experiment: the graph around it.

    Raises:
        InvalidArgumentError: the text is no layer, or an unknown format or instruction set.
    """

    def __init__(self, text: str, format: str, *, isa: str | None = None, threads: int | None = None) -> None:
        check_format(format, LAYER_FORMATS)
        self.text = text
        self.format = format
        self.experiment = layers.build(text)
        self._stored = self._component_format()
        graph, weights = self.experiment.graph, self.experiment.weights
        buffer = write_bundle(None, {_COMPONENT: graph}, {_COMPONENT: weights}, formats=self._stored)
        assert buffer is not None
        self._model = _core.Model.from_buffer(buffer, threads=threads or 0)
        self._model.set_plan_options(isa or "")
        dtype, weight_bytes = self._matrix()
        self.arithmetic = "int8" if dtype == format == "int8" else "fp32"
        self.gigabytes = (_ACTIVATION_BYTES[format] * self.experiment.activations + weight_bytes) * 1e-9

    def profile(self, rounds: int) -> list[tuple[str, int, int, int, list[float]]]:
        """The layer's steps as `_core.Model.profile` returns them, of `rounds` runs after one to warm up."""
        steps = self._model.profile(_COMPONENT, self.experiment.feeds, rounds)
        return [step for step in steps if step[1] == self.experiment.main]

    def seconds(self, rounds: int) -> list[float]:
        """Of each round, by a clock inside the library around the layer's steps only. 0: a neighbour does its work."""
        steps = self.profile(rounds)
        return [sum(step[4][round] for step in steps) for round in range(rounds)]

    def error(self) -> float:
        """Root mean square of the difference to the reference on a corner of the result, relative to the result's."""
        reference = Interpreter(
            self.experiment.graph, self.experiment.weights, backend="reference", format=self._stored
        )
        expected = self.experiment.corner(reference.run(self.experiment.crop)["y"])
        whole = self._model.run(_COMPONENT, self.experiment.feeds, ["y"])["y"]
        result = whole[tuple(slice(size) for size in expected.shape)]
        return float(np.sqrt(np.mean((result - expected) ** 2) / np.mean(expected**2)))

    def _component_format(self) -> ComponentFormat:
        if self.format != "int8":
            return ComponentFormat(self.format)
        reader = self.experiment.reader
        # What reads a layer_norm gets bytes from it; other readers make them, which is not the layer's time.
        is_bytes = self.experiment.graph.nodes[self.experiment.main].op == "layer_norm"
        apart = {} if reader is None or is_bytes else {reader: "fp16"}
        return ComponentFormat("int8", layers=apart, input_ranges=self._input_ranges())

    def _input_ranges(self) -> dict[str, tuple[float, float]]:
        """Of the layers that need one, over the corner."""
        graph = self.experiment.graph
        inputs = {
            name: layer.nodes[0].inputs[0] for name, layer in quantise.layers(graph).items() if layer.needs_input_range
        }
        if not inputs:
            return {}
        reference = Interpreter(graph, self.experiment.weights, backend="reference")
        found: Mapping[str, NDArray[np.float32]] = reference.run(self.experiment.crop, list(inputs.values()))
        return {name: (float(found[value].min()), float(found[value].max())) for name, value in inputs.items()}

    def _matrix(self) -> tuple[str, int]:
        """Stored format and bytes of the matrix that the layer multiplies with; "", 0: there is none."""
        weights = self.experiment.weights
        names = self.experiment.graph.nodes[self.experiment.main].inputs
        matrices = {f"{_COMPONENT}/{name}" for name in names if name in weights and weights[name].ndim > 1}
        stored = self._model.tensors()
        return next(((dtype, array.nbytes) for name, dtype, _, array in stored if name in matrices), ("", 0))


def measure(probe: Probe, repeats: int) -> dict[str, Any]:
    """The median of at least `repeats` runs.

    Returns:
        layer, format, arithmetic, seconds, gmac, gmac_per_second, gigabytes_per_second; kernels: the seconds of each.
    """
    with interruptible():
        first = probe.seconds(1)[0]
        rounds = max(repeats, min(_MOST_ROUNDS, int(_SECONDS / first) if first else 0))
        steps = probe.profile(rounds)
    seconds = statistics.median([sum(step[4][round] for step in steps) for round in range(rounds)])
    gmac = sum(step[3] for step in steps) * 1e-9
    kernels: dict[str, float] = {}
    for name, _, _, _, times in steps:
        kernel = name.partition(" ")[0]
        kernels[kernel] = kernels.get(kernel, 0.0) + statistics.median(times)
    return {
        "layer": probe.text,
        "format": probe.format,
        "kernels": kernels,
        "arithmetic": probe.arithmetic,
        "seconds": seconds,
        "gmac": gmac,
        "gmac_per_second": gmac / seconds if seconds else 0.0,
        "gigabytes_per_second": probe.gigabytes / seconds if seconds else 0.0,
    }


def text(found: Mapping[str, Any]) -> str:
    """`run` for people."""
    peaks = {what: speed * 1e-9 for what, speed in found["peaks"].items()}
    lines = [
        f"mdrt {found['version']}, isa {found['isa']}, {found['threads']} threads, {found['cpu']}",
        f"compiler {found['compiler']}, {found['compiler_flags']}",
        f"peaks: fp32 {peaks['fp32']:.1f}, int8 {peaks['int8']:.1f} GMAC/s, memory read {peaks['read']:.1f} GB/s",
        f"{'ms':>9} {'GMAC/s':>7} {'peak':>6} {'GB/s':>6}  format  layer",
    ]
    for layer in found["layers"]:
        share = "" if layer["share_of_peak"] is None else f"{layer['share_of_peak']:.1%}"
        speed = f"{layer['gmac_per_second']:.1f}" if layer["gmac"] else ""
        line = f"{1e3 * layer['seconds']:9.3f} {speed:>7} {share:>6} {layer['gigabytes_per_second']:6.1f}  "
        line += f"{layer['format']:<6}  {layer['layer']}"
        if len(layer["kernels"]) > 1:
            parts = (f"{kernel} {1e3 * seconds:.3f}" for kernel, seconds in layer["kernels"].items())
            line += f" ({' + '.join(parts)} ms)"
        lines.append(line)
    return "\n".join(lines)
