"""mdrt: a prompt becomes a picture on a CPU.

>>> import mdrt
>>> mdrt.Pipeline()("tiger on a blue background").save("tiger.png")
"""

from __future__ import annotations

import importlib
import importlib.util
import os
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
        f"the compiled part of mdrt is missing in {os.path.dirname(__file__)}: run `pip install .` in the clone and "
        "start Python in another folder, or run `pip install -e .`"
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
    return _installed("lib", "libmdrt.so")


def get_include() -> str:
    """The folder of the C header `mdrt.h`."""
    return os.path.dirname(_installed("include", "mdrt.h"))


def _installed(folder: str, name: str) -> str:
    # An editable installation keeps the compiled part elsewhere.
    spec = importlib.util.find_spec("mdrt._core")
    homes = [os.path.dirname(path) for path in (__file__, spec and spec.origin) if path]
    for home in homes:
        path = os.path.join(home, folder, name)
        if os.path.isfile(path):
            return path
    raise FileError(f"{folder}/{name} is not installed beside mdrt in {homes[-1]}; install mdrt again")
