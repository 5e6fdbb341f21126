"""What the library shows to the linker, and what the objects of the instruction sets may not contain.

A weak symbol compiled with AVX-512 flags may be the copy that the linker keeps for everybody: an illegal instruction on
other processors. The objects are looked at in the build folder that MDRT_BUILD_DIR names.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import mdrt
from mdrt import _core

ROOT = Path(__file__).parents[1]
BUILD = Path(os.environ.get("MDRT_BUILD_DIR", "/nonexistent"))
OBJECTS = sorted(BUILD.glob("CMakeFiles/mdrt_isa_*.dir/csrc/isa_unit.cc.o"))

# What a unit's code may not contain: instructions and registers of better processors than its own.
DOT, MATRIX = r"[su]dot\b|usdot\b", r"[su]mmla\b|usmmla\b"
HALF = r"f(?!cvt)\w+\s+v\d+\.[48]h|f(?!cvt)\w+\s+h\d"      # arithmetic; conversions belong to every Arm processor
FORBIDDEN = {
    "x86-64": {
        "generic": "%[yz]mm",
        "avx2": "%zmm|vpdpbusd|tdpb",
        "avxvnni": "%zmm|tdpb",
        "avx512": "vpdpbusd|tdpb",
        "avx512vnni": "tdpb",
    },
    "aarch64": {"generic": f"{DOT}|{MATRIX}|{HALF}", "neon": f"{DOT}|{MATRIX}|{HALF}", "neondot": MATRIX},
}

pytestmark = pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm and readelf (binutils)")


def run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def symbols(path: str | Path, *options: str) -> list[tuple[str, str]]:
    """Kind and name of every defined symbol."""
    lines = run("nm", "--defined-only", "--format=posix", *options, path).splitlines()
    return [(fields[1], fields[0]) for fields in map(str.split, lines) if len(fields) > 1]


def test_library_exports_the_header_and_one_table() -> None:
    header = re.sub(r"/\*.*?\*/", "", (ROOT / "csrc/include/mdrt.h").read_text(), flags=re.DOTALL)
    declared = set(re.findall(r"MDRT_API[^;]*?\b(mdrt_\w+)\(", header))
    exported = {name for _, name in symbols(mdrt.get_library(), "--dynamic")}
    assert exported == declared | {"mdrt_internal"}


def test_extension_finds_the_library_beside_itself() -> None:
    dynamic = run("readelf", "-d", _core.__file__)
    assert re.search(r"NEEDED.*\[libmdrt\.so\]", dynamic)
    assert re.search(r"R(UN)?PATH.*\[\$ORIGIN/lib\]", dynamic)
    assert re.search(r"SONAME.*\[libmdrt\.so\]", run("readelf", "-d", mdrt.get_library()))


def test_library_needs_only_the_system() -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-d", mdrt.get_library()))
    loader = [name for name in needed if name.startswith("ld-linux")]
    glibc = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2"}
    assert set(needed) - set(loader) <= {"libstdc++.so.6", "libgcc_s.so.1", *glibc}


@pytest.mark.skipif(not OBJECTS, reason="MDRT_BUILD_DIR names no build folder of cmake")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.parts[-3])
def test_objects_of_instruction_sets_share_nothing(path: Path) -> None:
    found = symbols(path, "--extern-only")
    assert found
    shared = [name for kind, name in found if kind in "WwVvu"]
    assert shared == []
    isa = path.parts[-3].removeprefix("mdrt_isa_").removesuffix(".dir")
    elsewhere = [name for _, name in found if not re.search(rf"\d{isa}[\dE]|_{isa}E$", name)]
    assert elsewhere == [], f"outside namespace {isa}"


@pytest.mark.skipif(not OBJECTS, reason="MDRT_BUILD_DIR names no build folder of cmake")
@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.parts[-3])
def test_objects_hold_only_their_instructions(path: Path) -> None:
    is_arm = "AArch64" in run("readelf", "--file-header", path)
    disassembler = shutil.which("aarch64-linux-gnu-objdump" if is_arm else "objdump")
    if disassembler is None:
        pytest.skip("needs objdump of the object's processor")
    isa = path.parts[-3].removeprefix("mdrt_isa_").removesuffix(".dir")
    forbidden = FORBIDDEN["aarch64" if is_arm else "x86-64"].get(isa)
    code = run(disassembler, "--disassemble", "--no-show-raw-insn", path)
    assert len(code.splitlines()) > 1000
    if forbidden:
        found = re.search(rf"^.*\t.*(?:{forbidden}).*$", code, re.MULTILINE)
        assert found is None, f"{isa} executes: {found[0] if found else ''}"
