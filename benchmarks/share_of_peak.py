"""How much of the int8 peak the heaviest layers reach, on a machine whose clock and neighbours change.

    python benchmarks/share_of_peak.py --isa avx512vnni --threads 2

A processor runs at one clock now and at another some milliseconds later, since programs on its other cores share its
power. So passes of the peak and of a layer alternate, about as long as each other: a layer's multiply-adds a second,
its int8 input's making included, are divided by the mean of the peak just before and just after. Printed are median and
quartiles of these shares and, since a peak is also what the machine does at its best, the layer's median speed divided
by the best pass of the peak.
"""

from __future__ import annotations

import argparse
import statistics

from mdrt import _core
from mdrt.bench_kernels import Probe, measure

LAYERS = (
    "16x16x1024 | linear 6144 | gated_unit silu",
    "64x64x320 | group_norm 32 | silu | conv2d 3x3 320 | add",
    "32x32x640 | resize_like 64x64 | conv2d 3x3 640",
)
SECONDS = 0.015  # of a layer's pass, if it reached the peak
PASSES = 4  # of a layer, one after another, in each round


class Shares:
    """Of one layer."""

    def __init__(self, text: str, isa: str | None, threads: int | None) -> None:
        self.text = text
        self.speeds: list[float] = []  # GMAC/s
        self.of_peak: list[float] = []
        self._probe = Probe(text, "int8", isa=isa, threads=threads)
        self._gmac = measure(self._probe, 3)["gmac"]

    def add(self, before: float, peak: Peak) -> float:
        """One pass; returns the peak after it, GMAC/s."""
        runs = max(1, round(SECONDS * before / self._gmac))
        self.speeds.append(self._gmac * runs / sum(self._probe.seconds(runs)))
        after = peak.measure()
        self.of_peak.append(self.speeds[-1] / statistics.mean((before, after)))
        return after


class Peak:
    """Of the int8 unit, GMAC/s."""

    def __init__(self, isa: str, threads: int) -> None:
        self.passes: list[float] = []
        self._isa, self._threads = isa, threads

    def measure(self) -> float:
        self.passes.append(_core.measure_peak("int8", self._isa, self._threads, passes=1) * 1e-9)
        return self.passes[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="", help="as `mdrt info` lists them; default: the best")
    parser.add_argument("--threads", type=int, default=0, help="default: the physical cores")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    layers = [Shares(text, arguments.isa or None, arguments.threads or None) for text in LAYERS]
    peak = Peak(arguments.isa, arguments.threads)
    for _ in range(arguments.rounds):
        for layer in layers:
            beside = peak.measure()
            for _ in range(PASSES):
                beside = layer.add(beside, peak)
    best = max(peak.passes)
    print(f"peak {quartiles(peak.passes, '.0f')}, best {best:.0f} GMAC/s, {arguments.rounds} rounds")
    for layer in layers:
        of_best = statistics.median(layer.speeds) / best
        print(f"{layer.text}\n  of the peak beside it: {quartiles(layer.of_peak, '.1%')}; of the best: {of_best:.1%}")


def quartiles(values: list[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


if __name__ == "__main__":
    main()
