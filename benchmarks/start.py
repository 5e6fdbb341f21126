"""How long it takes from exec to the first kernel, in C and with the command, the files being in the page cache.

    python benchmarks/start.py --model model.mdrt

Needs a C compiler. Medians of interleaved runs. The C program tells the clock when the job is begun: all is checked and
planned, and the next call runs the first kernel. The command tells its first event of progress, which comes after the
first slice of work; the C program's first slice is printed beside it. What the command takes longer than
`python -c "import numpy, PIL.Image"` is what mdrt adds to what such a program needs anyway.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import mdrt
from mdrt import models

SOURCE = Path(__file__).with_name("start.c")
PYTHON_IMPORTS = (sys.executable, "-c", "import numpy, PIL.Image")


def compile_program(folder: str) -> str:
    library = mdrt.get_library()
    program = os.path.join(folder, "start")
    where = os.path.dirname(library)
    compiler = os.environ.get("CC", "cc")
    flags = ["-std=c99", "-D_POSIX_C_SOURCE=199309L", "-O2", f"-I{mdrt.get_include()}"]
    subprocess.run([compiler, *flags, SOURCE, library, f"-Wl,-rpath,{where}", "-o", program], check=True)
    return program


def seconds_in_c(program: str, model: str) -> list[float]:
    """Since exec: main(), opened, first kernel, first event."""
    begin = time.monotonic()
    result = subprocess.run([program, model], stdout=subprocess.PIPE, text=True, check=True)
    return [float(word) - begin for word in result.stdout.split()]


def seconds_of_imports() -> float:
    begin = time.monotonic()
    subprocess.run(PYTHON_IMPORTS, check=True)
    return time.monotonic() - begin


def seconds_of_command(model: str) -> float:
    """From exec to the first event."""
    arguments = ["generate", "tiger on a blue background", "--seed", "1", "--model", model, "--progress", "json"]
    begin = time.monotonic()
    # In a clone's folder Python would import the sources, which lack the extension.
    with subprocess.Popen(
        [sys.executable, "-m", "mdrt", *arguments, "-o", os.devnull], stderr=subprocess.PIPE, cwd=os.path.sep
    ) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        seconds = time.monotonic() - begin
        if not line.startswith(b"{"):
            raise SystemExit((line + process.stderr.read()).decode())
        process.kill()
    return seconds


def milliseconds(values: Sequence[float]) -> str:
    return f"{1e3 * statistics.median(values):7.1f} ms ({1e3 * min(values):.1f}-{1e3 * max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a bundle; default: the built-in model")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    model = os.path.abspath(arguments.model or models.builtin_path())
    with tempfile.TemporaryDirectory() as folder:
        program = compile_program(folder)
        seconds_in_c(program, model), seconds_of_imports(), seconds_of_command(model)  # into the page cache
        in_c, imports, command = [], [], []
        for _ in range(arguments.rounds):
            in_c.append(seconds_in_c(program, model))
            imports.append(seconds_of_imports())
            command.append(seconds_of_command(model))
    print(f"{model}, {arguments.rounds} rounds: medians (and extremes) since exec")
    for label, values in zip(("main()", "opened", "first kernel", "first event"), zip(*in_c, strict=True), strict=True):
        print(f"  C: {label:<21} {milliseconds(values)}")
    print(f"  python: numpy, Pillow    {milliseconds(imports)}")
    print(f"  mdrt generate: 1st event {milliseconds(command)}")
    print(f"  difference of the two    {milliseconds([a - b for a, b in zip(command, imports, strict=True)])}")


if __name__ == "__main__":
    main()
