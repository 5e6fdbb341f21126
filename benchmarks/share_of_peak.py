"""How much of the int8 peak the heaviest layers reach, on a machine whose neighbours come and go.

    python benchmarks/share_of_peak.py --isa avx512vnni --threads 2

In every round each layer follows a measurement of the peak, so that both see the same clock: the median of the layer's
runs, its int8 input's making included, is divided by that peak. A neighbour on the same core takes loads, caches and
the front end from a layer and nothing from the peak, a loop on registers. So before and after a thread on every core
compresses some bytes, which says how much of the cores is there: a round is quiet where that took little more than the
best time of the whole run. Printed are median and range of all rounds and of the quiet ones.
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
SECONDS = 0.05  # of a layer's runs in a round, if it reached the peak
QUIET = 1.15  # of the best time to compress
BYTES = random.Random(0).randbytes(20_000) * 3


@dataclasses.dataclass(frozen=True)
class Round:
    """Of one layer."""

    peak: float  # GMAC/s
    share: float
    compressing: float  # seconds, the longer of before and after


class Witness:
    """Says how long some work takes that has nothing to do with mdrt, on every core at once."""

    def __init__(self) -> None:
        self._cores = _core.build_info()["usable_cores"]
        self._pool = ThreadPoolExecutor(self._cores)

    def seconds(self) -> float:
        return max(self._pool.map(self._compress, range(self._cores)))

    @staticmethod
    def _compress(_: int) -> float:
        begin = time.perf_counter()
        for _ in range(16):
            zlib.compress(BYTES, 6)
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="", help="as `mdrt info` lists them; default: the best")
    parser.add_argument("--threads", type=int, default=0, help="default: the physical cores")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    witness = Witness()
    probes = [Probe(text, "int8", isa=arguments.isa or None, threads=arguments.threads or None) for text in LAYERS]
    gmac = [measure(probe, 3)["gmac"] for probe in probes]
    rounds: list[list[Round]] = [[] for _ in LAYERS]
    for _ in range(arguments.rounds):
        for probe, work, found in zip(probes, gmac, rounds, strict=True):
            before = witness.seconds()
            peak = _core.measure_peak("int8", arguments.isa, arguments.threads) * 1e-9
            runs = max(3, round(SECONDS * peak / work))
            share = work / statistics.median(probe.seconds(runs)) / peak
            found.append(Round(peak, share, max(before, witness.seconds())))
    peaks = [entry.peak for found in rounds for entry in found]
    best = min(entry.compressing for found in rounds for entry in found)
    print(f"peak {statistics.median(peaks):.0f} GMAC/s ({min(peaks):.0f}-{max(peaks):.0f}), {arguments.rounds} rounds")
    for text, found in zip(LAYERS, rounds, strict=True):
        quiet = [entry.share for entry in found if entry.compressing <= QUIET * best]
        print(f"{text}\n  all:   {summary([entry.share for entry in found])}\n  quiet: {summary(quiet)}")


def summary(shares: list[float]) -> str:
    if not shares:
        return "none"
    return f"{statistics.median(shares):.1%} ({min(shares):.0%}-{max(shares):.0%}), {len(shares)} rounds"


if __name__ == "__main__":
    main()
