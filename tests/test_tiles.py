"""The loops of Arm's register tiles as the compiler made them: nothing spilled, and no slower by llvm-mca than before.

The objects are those of the build folder that MDRT_BUILD_DIR names.
"""

import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import count_tiles

BUILD = Path(os.environ.get("MDRT_BUILD_DIR", "/nonexistent"))
# Multiply-adds per simulated cycle that gcc 12 and clang 19 reach at least (docs/performance.md).
REACHED = {
    ("neon", "int8"): 7.9,
    ("neon", "fp32"): 4.0,
    ("neondot", "int8"): 31.3,
    ("neondot", "fp32"): 7.9,
    ("neoni8mm", "int8"): 56.6,
    ("neoni8mm", "fp32"): 7.9,
}


def find_loop(isa, kind):
    path = BUILD / f"CMakeFiles/mdrt_isa_{isa}.dir/csrc/isa_unit.cc.o"
    if not path.exists() or shutil.which("aarch64-linux-gnu-objdump") is None:
        pytest.skip("MDRT_BUILD_DIR names no build folder for Arm, or its objdump is missing")
    return next(loop for loop in count_tiles.tiles(path) if loop.kind == kind)


@pytest.mark.parametrize(("isa", "kind"), REACHED)
def test_tile_keeps_its_sums_in_registers(isa, kind):
    assert find_loop(isa, kind).spills == 0


@pytest.mark.skipif(count_tiles.find_mca() is None, reason="needs llvm-mca-19")
@pytest.mark.parametrize(("isa", "kind"), REACHED)
def test_tile_is_as_fast_as_it_was(isa, kind):
    loop = find_loop(isa, kind)
    assert loop.macs / loop.cycles() >= 0.95 * REACHED[isa, kind]
