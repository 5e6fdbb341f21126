"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from typing import BinaryIO

from mdrt.errors import Error, WriteError


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a temporary file that becomes `path` when the block has ended and the data is on disk; else it vanishes.

    Raises:
        WriteError: the file cannot be written; what was there before is untouched.
    """
    path = os.fspath(path)
    folder = os.path.dirname(path) or "."
    temporary = os.path.join(folder, f".mdrt-{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        if isinstance(error, Error):  # of the block: reading something else failed
            raise
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def _sync_folder(folder: str) -> None:
    """So that the new name survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
