"""Models that come with the package, as data."""

from __future__ import annotations

from pathlib import Path

from mdrt.errors import FileError

BUILTIN_NAME = "emoji"


def builtin_path() -> str:
    """The path of the built-in model: emoji, 128x128, one step.

    Raises:
        FileError: this installation has none.
    """
    path = Path(__file__).with_name(f"{BUILTIN_NAME}.mdrt")
    if not path.is_file():
        raise FileError(f"the built-in model {path} is missing; install mdrt again or name a model")
    return str(path)
