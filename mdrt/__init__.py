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
    spec = importlib.util.find_spec("mdrt._core")
    homes = [Path(__file__).parent]
    if spec is not None and spec.origin is not None:
        homes.append(Path(spec.origin).parent)
    for home in homes:
        for path in sorted((home / folder).glob(name + "*")) or sorted(home.glob(name + "*")):
            return path
    raise FileError(f"{name} is not installed beside mdrt ({homes[-1]}); install mdrt again with `pip install .`")
