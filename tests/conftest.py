"""What every run prints first, and what a missing PyTorch means."""

from __future__ import annotations

import importlib.util

import pytest

from mdrt import _core

HAS_TORCH = importlib.util.find_spec("torch") is not None


def pytest_report_header() -> str:
    info = _core.build_info()
    isas = [f"({row['name']})" if row["chosen"] else row["name"] for row in info["isas"] if row["usable"]]
    return f"mdrt {info['version']}: {info['compiler']}, {' '.join(isas)}, {info['usable_cores']} cores"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_TORCH:
        return
    for extra in ("oracle", "train"):
        skip = pytest.mark.skip(reason=f"PyTorch is not installed: pip install '.[test,{extra}]'")
        for item in items:
            if item.get_closest_marker(extra):
                item.add_marker(skip)
