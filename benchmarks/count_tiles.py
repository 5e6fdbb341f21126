"""Instructions and simulated cycles of register tiles: the loops that the compiler made, taken from object files.

A tile's loop is the innermost loop with the most multiply-adds of its kind among those that load and do little else.
llvm-mca simulates it on a processor of LLVM's; the result is a static estimate with every load a hit in the first-level
cache, not a measurement.

    python benchmarks/count_tiles.py build-arm64/CMakeFiles/mdrt_isa_neondot.dir/csrc/isa_unit.cc.o ...
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What counts as multiply-adds: kind -> (instruction with its operands as objdump prints them, multiply-adds).
MACS: dict[str, tuple[tuple[str, int], ...]] = {
    "int8": ((r"sdot\t.*\.4s", 16), (r"smmla\t", 32), (r"sm(?:ull|lal)2?\tv\d+\.8h", 8)),
    "fp16": ((r"fmla\tv\d+\.8h", 8),),
    "fp32": ((r"fmla\tv\d+\.4s", 4),),
}
# Instruction set -> LLVM's processor, and multiply-adds per cycle of its pipes by kind. neoverse-n1 is the server's
# Cortex-A76, whose own name in LLVM means an older pipeline.
PROCESSORS: dict[str, tuple[str, dict[str, int]]] = {
    "neon": ("cortex-a72", {"int8": 8, "fp32": 4}),
    "neondot": ("neoverse-n1", {"int8": 32, "fp16": 16, "fp32": 8}),
    "neoni8mm": ("neoverse-n2", {"int8": 64, "fp16": 16, "fp32": 8}),
}


@dataclass(frozen=True)
class Loop:
    """An innermost loop of an object file."""

    isa: str
    kind: str
    compiler: str
    instructions: tuple[str, ...]
    macs: int

    @property
    def spills(self) -> int:
        """Vector registers that wait in memory."""
        return sum(1 for line in self.instructions if re.match(r"(?:ld|st)[rpu]+\t[qd]\d+,.*\[(?:sp|x29)", line))

    def cycles(self, iterations: int = 200) -> float:
        """Simulated cycles of one iteration."""
        text = "\n".join(re.sub(r"[0-9a-f]+ <.*", "tile", line) for line in self.instructions)
        options = ["-mtriple=aarch64", f"-mcpu={PROCESSORS[self.isa][0]}", "-mattr=+dotprod,+fullfp16,+i8mm"]
        out = run(str(find_mca()), *options, f"-iterations={iterations}", text=f"tile:\n{text}\n")
        match = re.search(r"^Total Cycles:\s+(\d+)", out, re.MULTILINE)
        assert match
        return int(match[1]) / iterations


def run(*command: str, text: str = "") -> str:
    """What a program prints."""
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=120, check=True).stdout


def find_mca() -> str | None:
    """The path of llvm-mca 19 or newer, whose models are good enough; None without."""
    return next((path for path in map(shutil.which, ("llvm-mca-19", "llvm-mca-20", "llvm-mca-21")) if path), None)


def jump_target(line: str) -> int:
    """Where an instruction jumps to, -1 if it does not or calls."""
    match = re.match(r"(?:b\S*|t?cbn?z|tbn?z)\t.*?([0-9a-f]+) <", line)
    return int(match[1], 16) if match and not line.startswith("bl\t") else -1


def innermost_loops(path: Path) -> Iterator[list[str]]:
    """Bodies of loops without loops inside, as lines of instruction and operands."""
    text = run("aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", str(path))
    for function in re.split(r"\n(?=[0-9a-f]+ <)", text):
        found = re.finditer(r"^ *([0-9a-f]+):\t(.*)$", function, re.MULTILINE)
        lines = [(int(match[1], 16), match[2].split("//")[0].rstrip()) for match in found]
        index = {address: i for i, (address, _) in enumerate(lines)}
        jumps = [(index.get(jump_target(line), len(lines)), i) for i, (_, line) in enumerate(lines)]
        back = [jump for jump in jumps if jump[0] <= jump[1]]
        for first, last in back:
            if not any((first, last) != other and first <= other[0] and other[1] <= last for other in back):
                yield [line for _, line in lines[first : last + 1]]


def count_macs(kind: str, lines: list[str]) -> int:
    """Multiply-adds of one iteration; 0 of a loop that loads nothing or multiplies with few of its instructions."""
    macs = [macs for line in lines for pattern, macs in MACS[kind] if re.match(pattern, line)]
    loads = any(line.startswith("ld") for line in lines)
    return sum(macs) if loads and len(macs) >= 0.4 * len(lines) else 0


def compiler_of(path: Path) -> str:
    """gcc 12, clang 19: what the object says."""
    text = run("aarch64-linux-gnu-readelf", "-p", ".comment", str(path))
    clang, gcc = re.search(r"clang version (\d+)", text), re.search(r"GCC: .* (\d+)\.\d+\.\d+", text)
    return f"clang {clang[1]}" if clang else f"gcc {gcc[1]}" if gcc else "unknown"


def tiles(path: Path) -> list[Loop]:
    """The tile's loop of every kind that the object has."""
    match = re.search(r"mdrt_isa_(\w+)\.dir", str(path))
    isa = match[1] if match else path.name.split(".")[0]
    loops = list(innermost_loops(path))
    found = []
    for kind in PROCESSORS[isa][1]:
        most = max(loops, key=lambda lines: count_macs(kind, lines), default=[])
        if count_macs(kind, most):
            found.append(Loop(isa, kind, compiler_of(path), tuple(most), count_macs(kind, most)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("objects", nargs="+", type=Path)
    parser.add_argument("--show", action="store_true", help="print the loops")
    args = parser.parse_args()
    print("| row | products | compiler | instructions | multiply-adds | spilled | simulated as | MAC/cycle | share |")
    print("|---|---|---|---|---|---|---|---|---|")
    for loop in (loop for path in args.objects for loop in tiles(path)):
        processor, peaks = PROCESSORS[loop.isa]
        count, speed = len(loop.instructions), loop.macs / loop.cycles()
        print(
            f"| {loop.isa} | {loop.kind} | {loop.compiler} | {count} | {loop.macs} | {loop.spills} | {processor} "
            f"| {speed:.1f} of {peaks[loop.kind]} | {100 * speed / peaks[loop.kind]:.0f} % |"
        )
        if args.show:
            print("\n".join(loop.instructions))


if __name__ == "__main__":
    main()
