"""Times mdrt and other runtimes on the same networks, in turn, and writes the tables of docs/performance.md.

    python benchmarks/compare_peers.py --prepare       installs and converts: an hour, 20 GB, several GB of memory
    python benchmarks/compare_peers.py                 measures: needs a quiet machine

Run it with an environment that has mdrt. Each peer gets a virtual environment and its models in the work folder, once.
Every runtime runs in a process of its own; one round gives each a turn, one after the other, and a ratio is formed
within a round: mdrt's time divided by the peer's, so below 1 mdrt is faster. A peer that cannot be measured becomes a
row that says why.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from peers import cpuid, peaks
from peers.amx import has_amx
from peers.contenders import CONTENDERS, KINDS, LIMITS, STAGES, Contender
from peers.preparation import REPOSITORY, PreparationError, Workshop
from peers.processes import Worker, WorkerError
from peers.report import Group, Report, Row

DISTURBED = 0.15
"""Processors busy for others that spoil a round."""


def contenders(stage: str, kind: str, limit: str) -> list[Contender]:
    """Those of one comparison; where the processor has AMX, who uses it takes part with it and without."""
    rows = [row for row in CONTENDERS if row.kind == kind and stage in row.stages]
    if limit:
        return [dataclasses.replace(row, limit=f"{limit} only", older=LIMITS[limit], amx=False) for row in rows]
    if not has_amx():
        return [dataclasses.replace(row, amx=False) for row in rows]
    variants = []
    for row in rows:
        variants.append(row)
        if row.amx:
            variants.append(dataclasses.replace(row, amx=False, limit="no AMX"))
    return variants


def start(contender: Contender, stage: str, threads: int, workshop: Workshop, seconds: float) -> Worker:
    """The contender's worker, loaded and compared with PyTorch.

    Raises:
        PreparationError, WorkerError: there is no model, or it does not load or run.
    """
    older = contender.older
    if contender.runtime == "mdrt":
        model = workshop.bundle(contender.recipe)
    else:
        model = workshop.model(contender.recipe, stage)
    task = {
        "runtime": contender.runtime,
        "precision": contender.precision,
        "stage": stage,
        "model": str(model),
        "reference": str(workshop.model("onnx-fp32", stage)),
        "threads": threads,
        "amx": contender.amx or not contender.limit,
        "older": older and {"library": str(cpuid.library(workshop.folder)), "avx_vnni": older.avx_vnni},
        "seconds": seconds,
    }
    log = workshop.folder / "logs" / f"{stage}-{contender.runtime}-{contender.label}.log".replace(" ", "_")
    return Worker(workshop.python(contender.environment), task, log)


def measure(
    rows: list[Contender], stage: str, threads: int, workshop: Workshop, rounds: int, seconds: float
) -> tuple[list[Row], float]:
    """One turn of at least `seconds` for each contender in each round.

    Rounds in which other processes computed are repeated, up to twice as many; those with the least of it count.

    Returns:
        a row for each contender, and how many processors were busy for others in the worst round that counts.
    """
    workers: dict[int, Worker] = {}
    results = [Row(row.runtime, row.label, row.unit, row.amx) for row in rows]
    disturbance: list[float] = []
    try:
        for index, row in enumerate(rows):
            try:
                workers[index] = start(row, stage, threads, workshop, seconds)
                results[index].take_load(workers[index].loaded)
            except (PreparationError, WorkerError) as error:
                results[index].reason = str(error)
        while sum(share < DISTURBED for share in disturbance) < rounds and len(disturbance) < 2 * rounds:
            disturbance.append(0.0)
            for index, worker in list(workers.items()):
                try:
                    answer = worker.turn()
                    results[index].take_turn(answer)
                    disturbance[-1] = max(disturbance[-1], answer["others"])
                except WorkerError as error:
                    results[index].fail(str(error))
                    workers.pop(index).close()
    finally:
        for worker in workers.values():
            worker.close()
    counted = sorted(sorted(range(len(disturbance)), key=disturbance.__getitem__)[:rounds])
    for row in results:
        row.seconds = [row.seconds[index] for index in counted] if row.seconds else []
    return results, max((disturbance[index] for index in counted), default=0.0)


def gmac(stage: str, bundle: Path) -> float:
    """Multiply-adds of a stage for one picture, 10^9, as mdrt counts them."""
    from mdrt import bench

    count: float = bench.run(stage, model=str(bundle), repeats=1)["stages"][stage]["gmac"]
    return count


def groups(arguments: argparse.Namespace) -> Iterator[tuple[str, str, int, str]]:
    for stage in arguments.stages:
        for threads in arguments.threads:
            for kind in arguments.kinds:
                yield from ((stage, kind, threads, limit) for limit in arguments.limits or [""])


def prepare(workshop: Workshop, arguments: argparse.Namespace) -> None:
    """Makes everything that the groups need, and says what cannot be made."""
    for stage, kind, _, limit in groups(arguments):
        for row in contenders(stage, kind, limit):
            try:
                workshop.python(row.environment)
                workshop.model("onnx-fp32", stage)
                workshop.bundle(row.recipe) if row.runtime == "mdrt" else workshop.model(row.recipe, stage)
            except PreparationError as error:
                print(f"{row.runtime} {row.label}, {stage}: {error}", file=sys.stderr)


def bundle_argument(text: str) -> tuple[str, Path]:
    format, separator, path = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not FORMAT=FILE")
    return format, Path(path)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=REPOSITORY / "build" / "peers", help="environments and models")
    parser.add_argument("--checkpoint", type=Path, help="default: the published size, random weights")
    parser.add_argument(
        "--bundle", type=bundle_argument, action="append", default=[], metavar="FORMAT=FILE", help="of that checkpoint"
    )
    parser.add_argument("--prepare", action="store_true", help="only install and convert")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--limits", nargs="+", choices=LIMITS, default=[], help="hide newer instruction sets from all")
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.2, help="a turn repeats a call until it took as long")
    page = REPOSITORY / "docs" / "performance.md"
    parser.add_argument("--output", type=Path, default=page, help="a page of one machine")
    arguments = parser.parse_args()
    if arguments.limits and not cpuid.can_pretend():
        parser.error("--limits needs a processor that can fault on CPUID: cpuid_fault in /proc/cpuinfo")
    return arguments


def main() -> None:
    arguments = parse()
    workshop = Workshop(arguments.work, arguments.checkpoint, dict(arguments.bundle))
    if arguments.prepare:
        prepare(workshop, arguments)
        return
    report = Report(arguments.output)
    for stage, kind, threads, limit in groups(arguments):
        rows = contenders(stage, kind, limit)
        if stage not in report.gmac:
            report.gmac[stage] = gmac(stage, workshop.bundle("fp32"))
        try:
            units = peaks.units_of({row.unit for row in rows})
            left = [unit for unit in units if not limit or unit.label in LIMITS[limit].units]
            peak = peaks.measure(workshop.folder, threads, left)
        except (PreparationError, subprocess.CalledProcessError) as error:
            print(f"no peaks: {error}", file=sys.stderr)
            peak = {}
        results, others = measure(rows, stage, threads, workshop, arguments.rounds, arguments.seconds)
        group = Group(stage, kind, threads, limit, time.strftime("%Y-%m-%d"), peak, others, results)
        report.add(group)
        report.write()
        for row in results:
            median = f"{statistics.median(row.seconds):.4f} s" if row.seconds else f"not measured: {row.reason}"
            print(f"{stage}, {threads} threads: {row.runtime} {row.precision} {median}")


if __name__ == "__main__":
    main()
