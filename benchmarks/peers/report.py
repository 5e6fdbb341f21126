"""Measurements as JSON, and as tables between two markers of a Markdown page.

A group is what was measured in turn: one stage, kind and number of threads. Measuring it again replaces it, so that a
report can be made in parts; all of it is of one machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import peaks
from peers.contenders import KINDS, STAGES

BEGIN, END = "<!-- peers: begin -->", "<!-- peers: end -->"


@dataclass
class Row:
    """One contender's measurement; `reason` says why there is none."""

    runtime: str
    precision: str
    unit: str
    amx: bool
    version: str = ""
    seconds: list[float] = field(default_factory=list)
    load_seconds: float = 0.0
    peak_rss_bytes: int = 0
    error: float = 0.0
    reason: str = ""

    def take_load(self, answer: dict[str, Any]) -> None:
        """The first answer of a worker."""
        self.version, self.load_seconds, self.error = answer["version"], answer["load_seconds"], answer["error"]

    def take_turn(self, answer: dict[str, Any]) -> None:
        """The answer to a turn."""
        self.seconds.append(answer["seconds"])
        self.peak_rss_bytes = answer["peak_rss_bytes"]

    def fail(self, reason: str) -> None:
        """Forgets what was measured: rounds are compared, so all are needed."""
        self.seconds, self.reason = [], reason


@dataclass
class Group:
    """Rows measured in turn, the peaks just before, and how many processors were busy for others at worst."""

    stage: str
    kind: str
    threads: int
    limit: str
    date: str
    peaks: dict[str, float]
    others: float
    rows: list[Row]

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes two groups the same measurement."""
        return self.stage, self.kind, self.threads, self.limit

    def ours(self, amx: bool) -> Row | None:
        """mdrt's row; `amx`: as fast as it is with that."""
        return self._fastest(lambda row: row.runtime == "mdrt", amx)

    def best_peer(self, amx: bool) -> Row | None:
        """The peer with the least median; `amx`: those that use it as well."""
        return self._fastest(lambda row: row.runtime != "mdrt", amx)

    def _fastest(self, of: Callable[[Row], bool], amx: bool) -> Row | None:
        rows = [row for row in self.rows if of(row) and row.seconds and (amx or not row.amx)]
        return min(rows, key=lambda row: statistics.median(row.seconds), default=None)


class Report:
    """A page and the JSON file beside it, which holds the groups.

    Args:
        page: a Markdown file with the two markers; a new one gets them.

    Raises:
        ValueError: the page lacks a marker.
    """

    def __init__(self, page: Path) -> None:
        self._page = page
        text = page.read_text(encoding="utf-8") if page.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
        self._before, begin, rest = text.partition(BEGIN)
        _, end, self._after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{page} needs the lines {BEGIN} and {END}")
        self._file = page.with_suffix(".json")
        self.machine = machine()
        self.gmac: dict[str, float] = {}
        self._groups: dict[tuple[str, str, int, str], Group] = {}
        if self._file.exists():
            document = json.loads(self._file.read_text(encoding="utf-8"))
            self.gmac = document["gmac"]
            if document["machine"] == self.machine:
                for entry in document["groups"]:
                    self.add(Group(**{**entry, "rows": [Row(**row) for row in entry["rows"]]}))

    def add(self, group: Group) -> None:
        """Takes a group; one of the same key is replaced."""
        self._groups[group.key] = group

    def write(self) -> None:
        """Writes both files."""
        document = {
            "machine": self.machine,
            "gmac": self.gmac,
            "groups": [dataclasses.asdict(group) for group in self._groups.values()],
        }
        _replace(self._file, json.dumps(document, indent=1) + "\n")
        _replace(self._page, f"{self._before}{BEGIN}\n{self.markdown()}\n{END}{self._after}")

    def markdown(self) -> str:
        """What stands between the markers."""
        parts = [self._heading(), self._summary()]
        limits = sorted({group.limit for group in self._groups.values()})
        for limit in limits:
            for stage in STAGES:
                for threads in (2, 1):
                    of_table = [self._groups.get((stage, kind, threads, limit)) for kind in KINDS]
                    present = [group for group in of_table if group]
                    if present:
                        parts.append(self._table(present))
        return "\n\n".join(parts)

    def _heading(self) -> str:
        versions = {row.runtime: row.version for group in self._groups.values() for row in group.rows if row.version}
        dates = sorted({group.date for group in self._groups.values()})
        return (
            f"Machine: {self.machine['cpu']}, {self.machine['cores']} cores, {self.machine['memory_gb']} GB; "
            f"Linux {self.machine['kernel']}. Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.\n"
            f"Versions: {', '.join(f'{name} {version}' for name, version in sorted(versions.items()))}."
        )

    def _summary(self) -> str:
        amx = any(row.amx for group in self._groups.values() for row in group.rows)
        head = "| stage | kind | threads | mdrt s | best peer | its s | ratio (range) |"
        head += " without AMX: mdrt s | best peer | its s | ratio (range) |" if amx else ""
        lines = [head, re.sub(r"[^|]+", "---", head)]
        for group in sorted(self._groups.values(), key=_order):
            if group.limit:
                continue
            cells = [_stage(group.stage), group.kind, str(group.threads)]
            for with_amx in (True, False) if amx else (False,):
                ours, peer = group.ours(with_amx), group.best_peer(with_amx)
                cells += [_seconds(ours), _name(peer), _seconds(peer), ratio(ours, peer)]
            lines.append(_line(cells))
        lines += [_line(cells) for cells in self._pictures(amx)]
        return "\n".join(lines)

    def _pictures(self, amx: bool) -> list[list[str]]:
        """Rows for the sum of the stages: mdrt against the best peer at each."""
        rows = []
        for kind in KINDS:
            for threads in (2, 1):
                groups = [self._groups.get((stage, kind, threads, "")) for stage in STAGES]
                stages = [group for group in groups if group]
                if len(stages) < len(STAGES):
                    continue
                cells = ["**one-step picture**", kind, str(threads)]
                for with_amx in (True, False) if amx else (False,):
                    ours = _sum([group.ours(with_amx) for group in stages])
                    theirs = _sum([group.best_peer(with_amx) for group in stages])
                    cells += [_seconds(ours), "the best at each stage", _seconds(theirs), ratio(ours, theirs)]
                rows.append(cells)
        return rows

    def _table(self, groups: list[Group]) -> str:
        first = groups[0]
        limit = f", {first.limit} only" if first.limit else ""
        count = self.gmac[first.stage]
        units = {label: rate for group in groups for label, rate in group.peaks.items()}
        others = ", ".join(f"{group.kind} {group.others:.0%}" for group in groups)
        rounds = f"Other processes took at most, of a core: {others}."
        peak = ", ".join(f"{label} {rate:.0f}" for label, rate in units.items()) or "not measured"
        lines = [
            f"### {_stage(first.stage)}, {_plural(first.threads)}{limit}\n",
            f"{count:.1f} GMAC. Peaks, GMAC/s: {peak}. {rounds}\n",
            "| runtime | precision | s | mdrt / it (range) | GMAC/s | share of peak | peak RSS MB | load s | error |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for group in groups:
            for row in sorted(group.rows, key=lambda row: (row.runtime != "mdrt", *_speed(row))):
                lines.append(_line(self._cells(group, row, count)))
        return "\n".join(lines)

    @staticmethod
    def _cells(group: Group, row: Row, count: float) -> list[str]:
        if not row.seconds:
            return [row.runtime, row.precision, f"not measured: {_cell(row.reason)}", *[""] * 6]
        rate = count / statistics.median(row.seconds)
        peak = peaks.best(group.peaks, row.unit, row.amx)
        return [
            row.runtime,
            row.precision,
            _seconds(row),
            "" if row.runtime == "mdrt" else ratio(group.ours(row.amx), row),
            f"{rate:.0f}",
            f"{rate / peak[1]:.0%} of {peak[0]}" if peak else "",
            f"{row.peak_rss_bytes / 1e6:.0f}",
            f"{row.load_seconds:.2f}",
            f"{row.error:.1e}",
        ]


def ratio(ours: Row | None, theirs: Row | None) -> str:
    """Median and range of mdrt's time over a peer's, round by round."""
    if ours is None or theirs is None:
        return "not measured"
    ratios = [a / b for a, b in zip(ours.seconds, theirs.seconds, strict=False)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def machine() -> dict[str, Any]:
    """What a figure depends on."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", information, re.MULTILINE)
    family = re.findall(r"^(?:cpu family|model|stepping)\s*:\s*(\d+)$", information, re.MULTILINE)[:3]
    extensions = sorted({unit.flag for unit in peaks.UNITS} & peaks.cpu_flags())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    model = " ".join([name[1] if name else platform.machine(), *([f"({'/'.join(family)})"] if family else [])])
    return {
        "cpu": f"{model} with {', '.join(extensions)}",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9),
        "kernel": platform.release(),
    }


def _sum(rows: list[Row | None]) -> Row | None:
    """Stages added up round by round; None if one is missing."""
    measured = [row for row in rows if row]
    if len(measured) < len(rows):
        return None
    times = [sum(times) for times in zip(*(row.seconds for row in measured), strict=False)]
    return Row("", "", "", amx=False, seconds=times)


def _order(group: Group) -> tuple[int, int, int]:
    return STAGES.index(group.stage), KINDS.index(group.kind), -group.threads


def _speed(row: Row) -> tuple[bool, float]:
    return not row.seconds, statistics.median(row.seconds) if row.seconds else 0.0


def _name(row: Row | None) -> str:
    return f"{row.runtime} {row.precision}" if row else "none"


def _stage(stage: str) -> str:
    return {"text_encoder": "text encoder", "unet": "UNet", "vae_decoder": "decoder"}[stage]


def _plural(threads: int) -> str:
    return "1 thread" if threads == 1 else f"{threads} threads"


def _seconds(row: Row | None) -> str:
    return f"{statistics.median(row.seconds):.3f}" if row else "not measured"


def _cell(text: str) -> str:
    return text.replace("|", "/")


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
