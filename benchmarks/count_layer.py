"""Instructions that a multiply-add of an int8 layer takes on 64-bit Arm, loading and epilogue included, by qemu.

    python benchmarks/count_layer.py build-arm64/layer_task

qemu logs every block of instructions when it translates it and when it executes it. What the program takes without any
task of the layer is subtracted.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from pathlib import Path

PROCESSORS = {"neon": "cortex-a72", "neondot": "cortex-a76", "neoni8mm": "max"}
LAYERS = ("linear 1024 to 6144, 16x16", "3x3 320 to 320, 64x64", "3x3 640 to 640, 64x64")


def count_instructions(program: Path, isa: str, layer: int, tasks: int) -> tuple[int, int]:
    """Executed instructions of the whole program, and the multiply-adds of one task."""
    qemu = ["qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu", "-cpu", PROCESSORS[isa]]
    log = ["-d", "in_asm,exec,nochain", "-D", "/dev/stderr"]
    command = [*qemu, *log, str(program), "--isa", isa, "--layer", str(layer), "--tasks", str(tasks)]
    sizes: dict[int, int] = {}
    executed, block, size = 0, -1, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        for line in process.stderr:
            if match := re.match(r"Trace \d+: 0x[0-9a-f]+ \[[0-9a-f]+/([0-9a-f]+)/", line):
                if block >= 0:
                    sizes[block], block = size, -1
                executed += sizes[int(match[1], 16)]
            elif match := re.match(r"0x([0-9a-f]+):", line):
                block, size = (int(match[1], 16), 1) if block < 0 else (block, size + 1)
        macs = re.search(r"of (\d+) multiply-adds", process.stdout.read())
    if macs is None or process.returncode:
        raise SystemExit(f"{program} failed: {' '.join(command)}")
    return executed, int(macs[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", type=Path)
    program = parser.parse_args().program
    print("| layer |", " | ".join(PROCESSORS), "|")
    print("|---|" + "---|" * len(PROCESSORS))
    for number, name in enumerate(LAYERS):
        cells = []
        for isa in PROCESSORS:
            without, _ = count_instructions(program, isa, number, 0)
            executed, macs = count_instructions(program, isa, number, 1)
            cells.append(f"{(executed - without) / macs:.3f}")
        print("|", " | ".join([name, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
