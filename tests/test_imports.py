"""Imports run one way (docs/architecture.md)."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# A module may import those further left only; those of one group do not know each other.
GROUPS = [
    "errors",
    "files graph schedulers models prompts",
    "formats png layers",
    "quantise",
    "ops bundle",
    "interpreter",
    "session kernels",
    "pipeline stages",
    "compare",
    "describe profile selftest",
    "bench",
    "bench_kernels",
    "weights_tools",
    "cli",
    "__main__",
]
RANK = {name: rank for rank, group in enumerate(GROUPS) for name in group.split()}


def owner(module):
    """`mdrt.ops.conv` -> `ops`, `weights_tools.unet` -> `weights_tools`, `mdrt` and `mdrt._core` -> None."""
    parts = module.split(".")
    if parts[0] == "weights_tools":
        return parts[0]
    return parts[1] if parts[0] == "mdrt" and len(parts) > 1 and parts[1] in RANK else None


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = [path for package in ("mdrt", "weights_tools") for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    here = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    if here == "mdrt":
        return
    name = owner(here)
    assert name is not None, f"{here} has no place in GROUPS"
    for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
        other = owner(module)
        assert other is None or other == name or RANK[other] < RANK[name], f"{here} imports {module}"


def test_no_module_for_everything():
    assert not {path.stem for path in FILES} & {"utils", "helpers", "common", "manager"}


def test_without_the_compiled_part(tmp_path):
    shutil.copytree(ROOT / "mdrt", tmp_path / "mdrt", ignore=shutil.ignore_patterns("*.so", "*.mdrt", "__pycache__"))
    code = "try:\n import mdrt\nexcept ImportError as error:\n print(error)"
    result = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "the compiled part of mdrt is missing" in result.stdout and "pip install ." in result.stdout
