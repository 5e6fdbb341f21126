"""How much of the int8 peak the heaviest layers reach, on a machine whose clock and neighbours change.

    python benchmarks/share_of_peak.py --isa avx512vnni --threads 2

A processor runs at one clock now and at another some milliseconds later, since programs on its other cores share its
power. So passes of the peak and of a layer alternate, about as long as each other: a layer's multiply-adds a second,
its int8 input's making included, are divided by the mean of the peak just before and just after.

A neighbour on the same core takes loads, caches and the front end from a layer and nothing from the peak, a loop on
registers. So beside every pass of the peak a thread on each core compresses some bytes, which a neighbour slows down
to a half; where that is close to the best of the whole run, as far as the clock allows, nobody else was there.

Printed are median and quartiles of the shares, of all and of those without a neighbour, and, since a peak is also what
the machine does at its best, the layer's median speed divided by the best pass of the peak.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

from mdrt import _core
from mdrt.bench_kernels import Probe, measure

LAYERS = (
    "16x16x1024 | linear 6144 | gated_unit silu",
    "64x64x320 | group_norm 32 | silu | conv2d 3x3 320 | add",
    "32x32x640 | resize_like 64x64 | conv2d 3x3 640",
)
SECONDS = 0.015  # of a layer's pass, if it reached the peak
PASSES = 4  # of a layer, one after another, in each round
QUIET = 0.85  # of the best speed of compressing
BYTES = random.Random(0).randbytes(20_000) * 3


@dataclasses.dataclass(frozen=True)
class Moment:
    """What the machine did between two passes of a layer."""

    peak: float  # GMAC/s
    compressing: float  # bytes a second of the slowest core


@dataclasses.dataclass(frozen=True)
class Pass:
    """Of a layer."""

    speed: float  # GMAC/s
    share: float  # of the peak beside it
    compressing: float  # of the slower moment beside it


class Machine:
    """Measures moments."""

    def __init__(self, isa: str, threads: int) -> None:
        self.moments: list[Moment] = []
        self._isa, self._threads = isa, threads
        self._cores = _core.build_info()["usable_cores"]
        self._pool = ThreadPoolExecutor(self._cores)

    def look(self) -> Moment:
        before = self._compress()
        peak = _core.measure_peak("int8", self._isa, self._threads, passes=1) * 1e-9
        self.moments.append(Moment(peak, min(before, self._compress())))
        return self.moments[-1]

    def _compress(self) -> float:
        return min(self._pool.map(compress, range(self._cores)))


def compress(_: int) -> float:
    """Bytes a second."""
    begin = time.perf_counter()
    for _ in range(3):
        zlib.compress(BYTES, 6)
    return 3 * len(BYTES) / (time.perf_counter() - begin)


class Layer:
    """Measures passes."""

    def __init__(self, text: str, isa: str | None, threads: int | None) -> None:
        self.text = text
        self.passes: list[Pass] = []
        self._probe = Probe(text, "int8", isa=isa, threads=threads)
        self._gmac = measure(self._probe, 3)["gmac"]

    def run(self, before: Moment, machine: Machine) -> Moment:
        """One pass; returns the moment after it."""
        runs = max(1, round(SECONDS * before.peak / self._gmac))
        speed = self._gmac * runs / sum(self._probe.seconds(runs))
        after = machine.look()
        share = speed / statistics.mean((before.peak, after.peak))
        self.passes.append(Pass(speed, share, min(before.compressing, after.compressing)))
        return after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="", help="as `mdrt info` lists them; default: the best")
    parser.add_argument("--threads", type=int, default=0, help="default: the physical cores")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    layers = [Layer(text, arguments.isa or None, arguments.threads or None) for text in LAYERS]
    machine = Machine(arguments.isa, arguments.threads)
    for _ in range(arguments.rounds):
        for layer in layers:
            moment = machine.look()
            for _ in range(PASSES):
                moment = layer.run(moment, machine)
    peaks = [moment.peak for moment in machine.moments]
    alone = QUIET * max(moment.compressing for moment in machine.moments)
    print(f"peak {quartiles(peaks, '.0f')}, best {max(peaks):.0f} GMAC/s")
    for layer in layers:
        shares = [entry.share for entry in layer.passes]
        quiet = [entry.share for entry in layer.passes if entry.compressing >= alone]
        of_best = statistics.median(entry.speed for entry in layer.passes) / max(peaks)
        print(
            f"{layer.text}\n  of the peak beside it: {quartiles(shares, '.1%')}; without neighbours: "
            f"{quartiles(quiet, '.1%')}; of the best: {of_best:.1%}"
        )


def quartiles(values: list[float], form: str) -> str:
    if len(values) < 2:
        return f"{len(values)} passes"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}}-{high:{form}}, {len(values)} passes)"


if __name__ == "__main__":
    main()
