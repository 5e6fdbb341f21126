"""Models that come with the package, as data."""

from __future__ import annotations

import os

from mdrt.errors import FileError

BUILTIN_NAME = "emoji"


def builtin_path() -> str:
    """The path of the built-in model: emoji, 128x128, one step.

    Raises:
        FileError: this installation has none.
    """
    path = os.path.join(os.path.dirname(__file__), f"{BUILTIN_NAME}.mdrt")
    if not os.path.isfile(path):
        raise FileError(f"the built-in model {path} is missing; install mdrt again or name a model")
    return path
