"""How much of the int8 peak the heaviest layers reach, on a machine whose neighbours come and go.

    python benchmarks/share_of_peak.py --isa avx512vnni --threads 2

In every round each layer follows a measurement of the peak, so that both see the same neighbours: the median of the
layer's runs, its int8 input's making included, is divided by that peak. Printed are median and range of the rounds.
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
SECONDS = 0.05  # of a layer's runs in a round, if it reached the peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", default="", help="as `mdrt info` lists them; default: the best")
    parser.add_argument("--threads", type=int, default=0, help="default: the physical cores")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    probes = [Probe(text, "int8", isa=arguments.isa or None, threads=arguments.threads or None) for text in LAYERS]
    gmac = [measure(probe, 3)["gmac"] for probe in probes]
    peaks: list[float] = []
    shares: list[list[float]] = [[] for _ in LAYERS]
    for _ in range(arguments.rounds):
        for probe, work, found in zip(probes, gmac, shares, strict=True):
            peaks.append(_core.measure_peak("int8", arguments.isa, arguments.threads) * 1e-9)
            runs = max(3, round(SECONDS * peaks[-1] / work))
            found.append(work / statistics.median(probe.seconds(runs)) / peaks[-1])
    print(f"peak {statistics.median(peaks):.0f} GMAC/s ({min(peaks):.0f}-{max(peaks):.0f}), {arguments.rounds} rounds")
    for text, found in zip(LAYERS, shares, strict=True):
        print(f"{statistics.median(found):7.1%} ({min(found):.0%}-{max(found):.0%})  {text}")


if __name__ == "__main__":
    main()
