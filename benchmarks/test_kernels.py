"""Kernels on the layers of mdrt/layers.txt: `pytest benchmarks --benchmark-only -k "int8 and 3x3"`.

The clock runs inside the library, around the layer's steps only. Each benchmark first compares a corner of its result
with the reference, so that no speed is reported for a wrong result. Needs the extra `bench`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from mdrt import _core, bench, layers
from mdrt.bench_kernels import Probe
from mdrt.formats import FORMATS

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 5
# Of the root mean square of a result. fp16 and int8 store it as halves: at most 2**-11 of each number. As much again
# for numbers of the input that round to another half or byte.
LARGEST_ERROR = {"fp32": 1e-5, "fp16": 2**-10, "int8": 2**-10}


class EngineClock:
    """Stands still except for the seconds that the library reports."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = EngineClock()


@functools.cache
def peak(what: str) -> float:
    return _core.measure_peak(what)


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", [layer.text for layer in layers.read()])
def test_layer(text: str, format: str, benchmark: BenchmarkFixture) -> None:
    probe = Probe(text, format)
    assert probe.error() <= LARGEST_ERROR[format]

    def run() -> None:
        CLOCK.now += probe.seconds(1)[0]

    benchmark.pedantic(run, rounds=ROUNDS)
    if not benchmark.enabled:
        return
    gmac = sum(step[3] for step in probe.profile(1)) * 1e-9
    benchmark.group = format
    benchmark.extra_info |= bench.machine(None, None) | {"gigabytes": probe.gigabytes}
    if gmac:
        speed = gmac / benchmark.stats.stats.median
        benchmark.extra_info |= {"gmac": gmac, "gmac_per_second": speed}
        benchmark.extra_info["share_of_peak"] = speed * 1e9 / peak(probe.arithmetic)
