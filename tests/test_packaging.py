"""The installed distribution: every file once and in its place, and what a person meets first."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import mdrt
from mdrt import _core

ROOT = Path(__file__).parents[1]
DISTRIBUTION = importlib.metadata.distribution("mdrt")
EDITABLE = not Path(mdrt.__file__).is_relative_to(str(DISTRIBUTION.locate_file("")))
not_editable = pytest.mark.skipif(EDITABLE, reason="an editable installation runs from the clone")


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def files() -> list[str]:
    assert DISTRIBUTION.files is not None
    return [str(path) for path in DISTRIBUTION.files]


def test_library_is_installed_once(files: list[str]) -> None:
    assert [path for path in files if "libmdrt" in path] == ["mdrt/lib/libmdrt.so"]
    assert Path(mdrt.get_library()) == Path(_core.__file__).parent / "lib/libmdrt.so"


def test_header_is_installed_once(files: list[str]) -> None:
    assert [path for path in files if path.endswith(".h")] == ["mdrt/include/mdrt.h"]
    assert (Path(mdrt.get_include()) / "mdrt.h").read_bytes() == (ROOT / "csrc/include/mdrt.h").read_bytes()


@not_editable
def test_packages_are_complete(files: list[str]) -> None:
    sources = {
        str(path.relative_to(ROOT))
        for package in ("mdrt", "weights_tools")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc")
    }
    assert "mdrt/py.typed" in sources
    assert "mdrt/_core.pyi" in sources
    assert any(path.startswith("mdrt/models/") and path.endswith(".mdrt") for path in sources)
    assert sources <= set(files)
    top = Counter(Path(path).parts[0] for path in files if "__pycache__" not in path and not path.startswith(".."))
    assert set(top) == {"mdrt", "weights_tools", f"mdrt-{mdrt.__version__}.dist-info"}


def test_size_of_the_installation(files: list[str]) -> None:
    total = sum(Path(str(DISTRIBUTION.locate_file(path))).stat().st_size for path in files if not path.endswith(".pyc"))
    assert total < 30e6


def test_metadata() -> None:
    assert DISTRIBUTION.version == mdrt.__version__ == _core.version()
    requires = DISTRIBUTION.requires or []
    needed = {line for line in requires if "extra" not in line}
    assert needed == {"numpy>=1.24", "pillow", "safetensors", "tqdm"}
    extras = {"test", "oracle", "train", "bench", "export", "dev"}
    assert set(DISTRIBUTION.metadata.get_all("Provides-Extra") or []) == extras
    assert [entry.value for entry in DISTRIBUTION.entry_points] == ["mdrt.cli:main"]


def test_program_and_module_say_the_version(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "mdrt"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    module = python("-m", "mdrt", "--version", cwd=tmp_path)
    assert mdrt.__version__ in said
    assert module.stdout == said


def test_import_is_light(tmp_path: Path) -> None:
    heavy = {"numpy", "PIL", "safetensors", "tqdm", "weights_tools"}
    code = f"import sys, mdrt; print(sorted({heavy} & set(sys.modules)))"
    done = python("-c", code, cwd=tmp_path)
    assert done.stdout.strip() == "[]", done.stderr


@not_editable
def test_import_without_the_compiled_part_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "mdrt", tmp_path / "mdrt", ignore=shutil.ignore_patterns("*.so", "__pycache__", "*.mdrt"))
    done = python("-c", "import mdrt", cwd=tmp_path)
    assert done.returncode == 1
    assert "the compiled part of mdrt is missing" in done.stderr
    assert "pip install" in done.stderr
