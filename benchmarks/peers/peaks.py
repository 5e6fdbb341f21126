"""The peaks of this processor's units, measured by peak.c."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from peers.build import build


@dataclass(frozen=True)
class Unit:
    """A row of peak.c, the flag of /proc/cpuinfo that stands for it, and the arithmetic that it does."""

    name: str
    flag: str
    arithmetic: str
    label: str


UNITS = (
    Unit("fma_ymm", "fma", "fp32", "fp32 AVX2"),
    Unit("fma_zmm", "avx512f", "fp32", "fp32 AVX-512"),
    Unit("fmla", "asimd", "fp32", "fp32 NEON"),
    Unit("bf16_zmm", "avx512_bf16", "bf16", "bf16 AVX512-BF16"),
    Unit("amx_bf16", "amx_bf16", "bf16", "bf16 AMX"),
    Unit("maddubs", "avx2", "int8", "int8 AVX2, saturating"),
    Unit("vnni_vex", "avx_vnni", "int8", "int8 AVX-VNNI"),
    Unit("vnni_zmm", "avx512_vnni", "int8", "int8 AVX512-VNNI"),
    Unit("amx_int8", "amx_int8", "int8", "int8 AMX"),
    Unit("sdot", "asimddp", "int8", "int8 dotprod"),
    Unit("smmla", "i8mm", "int8", "int8 i8mm"),
)


def cpu_flags() -> set[str]:
    """Features of the first processor as Linux names them."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    match = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return set(match[1].split()) if match else set()


def units_of(arithmetics: Collection[str]) -> list[Unit]:
    """The units that some kinds of arithmetic run on; bf16 also runs on those of fp32."""
    wanted = {*arithmetics, "fp32"} if "bf16" in arithmetics else set(arithmetics)
    return [unit for unit in UNITS if unit.arithmetic in wanted]


def measure(folder: Path, threads: int, units: Collection[Unit]) -> dict[str, float]:
    """GMAC/s by the labels of those units that this processor has.

    Raises:
        PreparationError: there is no C compiler, or it fails.
        subprocess.CalledProcessError: a measurement does.
    """
    program = build("peak.c", folder / "peak", "-pthread")
    flags = cpu_flags()
    return {unit.label: _rate(program, unit, threads) for unit in units if unit.flag in flags}


def _rate(program: Path, unit: Unit, threads: int) -> float:
    answer = subprocess.run([program, unit.name, str(threads)], check=True, capture_output=True, text=True)
    return float(answer.stdout)


def best(peaks: dict[str, float], arithmetic: str, amx: bool) -> tuple[str, float] | None:
    """The fastest measured unit for an arithmetic, with or without AMX."""
    labels = [unit.label for unit in units_of({arithmetic}) if amx or "AMX" not in unit.label]
    measured = [(peaks[label], label) for label in labels if label in peaks]
    if not measured:
        return None
    rate, label = max(measured)
    return label, rate
