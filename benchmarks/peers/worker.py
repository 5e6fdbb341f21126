"""A process that loads one model once and times it whenever it is told: `python -m peers.worker JSON`.

JSON is an object with runtime, precision, stage, model, reference, threads, amx, older and seconds. Answers are lines
of JSON on standard output: one when the model is loaded (and compared with the reference), then one for each line of
standard input.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from peers.amx import forbid_amx
from peers.convert import read_reference
from peers.cpuid import pretend
from peers.runtimes import LOADERS


def main() -> None:
    # Runtimes print; the answers keep the real standard output to themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    task = json.loads(sys.argv[1])
    if not task["amx"]:
        forbid_amx()
    if task["older"]:
        pretend(**task["older"])
    feeds, expected = read_reference(Path(task["reference"]))
    start = time.perf_counter()
    load = LOADERS[task["runtime"]]
    call, version = load(task["stage"], Path(task["model"]), task["precision"], task["threads"], feeds)
    load_seconds = time.perf_counter() - start
    output = np.asarray(call(), np.float32).reshape(expected.shape)
    error = float(np.sqrt(np.mean((output - expected) ** 2) / np.mean(expected**2)))
    answer(version=version, load_seconds=load_seconds, error=error)
    for _ in sys.stdin:
        answer(**turn(call, task["seconds"]), peak_rss_bytes=peak_rss_bytes())


def turn(call: Callable[[], object], at_least: float) -> dict[str, float]:
    """One call to warm up, since others ran in between; then as many as take `at_least` seconds.

    Returns:
        `seconds`, the median; `others`, how many processors were busy for other processes or other guests meanwhile.
    """
    call()
    times: list[float] = []
    others = -foreign_seconds()
    while not times or sum(times) < at_least:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    others += foreign_seconds()
    return {"seconds": statistics.median(times), "others": max(others, 0.0) / sum(times)}


def foreign_seconds() -> float:
    """Processor seconds since the start of the machine that were not this process's, idle ones apart."""
    with open("/proc/stat", encoding="ascii") as statistics_of_all:
        user, nice, system, _, _, irq, softirq, steal = map(int, statistics_of_all.readline().split()[1:9])
    mine = os.times()
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - mine.user - mine.system


def peak_rss_bytes() -> int:
    """VmHWM of this process: mapped weights that were touched are in it."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


if __name__ == "__main__":
    main()
