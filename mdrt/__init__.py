"""mdrt: a prompt becomes a picture on a CPU.

>>> import mdrt
>>> mdrt.Pipeline()("tiger on a blue background").save("tiger.png")
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from mdrt.errors import (
    BundleError,
    Cancelled,
    ConversionError,
    Error,
    FileError,
    InternalError,
    Interrupted,
    InvalidArgumentError,
    MemoryLimitError,
    NumericError,
    UnsupportedError,
    VersionError,
    WriteError,
)

if TYPE_CHECKING:
    from mdrt import kernels, models, schedulers
    from mdrt.graph import Graph
    from mdrt.interpreter import Interpreter
    from mdrt.pipeline import Event, Pipeline
    from mdrt.session import Session

__version__ = "0.1.0"

__all__ = [
    "BundleError",
    "Cancelled",
    "ConversionError",
    "Error",
    "Event",
    "FileError",
    "Graph",
    "InternalError",
    "Interpreter",
    "Interrupted",
    "InvalidArgumentError",
    "MemoryLimitError",
    "NumericError",
    "Pipeline",
    "Session",
    "UnsupportedError",
    "VersionError",
    "WriteError",
    "__version__",
    "get_include",
    "get_library",
    "kernels",
    "models",
    "schedulers",
]

if importlib.util.find_spec("mdrt._core") is None:
    raise ImportError(
        f"the compiled part of mdrt is missing in {Path(__file__).parent}: run `pip install .` in the clone and start "
        "Python in another folder, or run `pip install -e .`"
    )

# Imported on first use: `import mdrt` costs no numpy. A name without a module is a module itself.
_LAZY = {
    "Event": "pipeline",
    "Graph": "graph",
    "Interpreter": "interpreter",
    "Pipeline": "pipeline",
    "Session": "session",
    "kernels": "",
    "models": "",
    "schedulers": "",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'mdrt' has no attribute {name!r}")
    module = importlib.import_module(f"mdrt.{_LAZY[name] or name}")
    value = getattr(module, name) if _LAZY[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def get_library() -> str:
    """The path of the shared library, libmdrt, for programs in other languages (csrc/include/mdrt.h)."""
    return str(_installed("lib", "libmdrt.so"))


def get_include() -> str:
    """The folder of the C header `mdrt.h`."""
    return str(_installed("include", "mdrt.h").parent)


def _installed(folder: str, name: str) -> Path:
    # An editable installation keeps the compiled part elsewhere.
    spec = importlib.util.find_spec("mdrt._core")
    homes = [Path(__file__).parent, *([Path(spec.origin).parent] if spec and spec.origin else [])]
    for home in homes:
        if (home / folder / name).is_file():
            return home / folder / name
    raise FileError(f"{folder}/{name} is not installed beside mdrt in {homes[-1]}; install mdrt again")
