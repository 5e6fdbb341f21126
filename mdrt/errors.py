"""Every exception that mdrt raises on purpose: a small tree under `Error`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Error(Exception):
    """Base of all errors of this package; its text is one sentence that says what is wrong and what to do."""


class InvalidArgumentError(Error, ValueError):
    """An argument, prompt, array or option is not acceptable, or a closed object was used."""


class FileError(Error, OSError):
    """A file cannot be opened, read or written."""


class WriteError(FileError):
    """A file cannot be written; what was there before is untouched."""


class BundleError(Error):
    """A file is not a valid bundle; the text names the field."""


class VersionError(Error):
    """A bundle or this CPU needs another mdrt."""


class MemoryLimitError(Error, MemoryError):
    """More memory is needed than allowed or available; the text states both numbers."""


class Cancelled(Error):
    """The call was cancelled. The object that was used stays usable."""


class Interrupted(Cancelled, KeyboardInterrupt):
    """The call was cancelled by Ctrl-C; also a `KeyboardInterrupt`."""


class NumericError(Error):
    """A result holds NaN or infinity."""


class ConversionError(Error):
    """A checkpoint is incomplete or contradicts its configuration."""


class UnsupportedError(Error):
    """Valid input of a kind that this version does not run."""


class InternalError(Error):
    """A defect of mdrt itself: please report it."""


# mdrt_status (csrc/include/mdrt.h) -> exception.
_BY_STATUS: dict[int, type[Error]] = {
    1: InvalidArgumentError,
    2: FileError,
    3: BundleError,
    4: VersionError,
    5: MemoryLimitError,
    6: Cancelled,
    7: NumericError,
    8: InvalidArgumentError,
    9: InternalError,
}


def from_status(status: int, message: str) -> Error:
    """The exception that belongs to an `mdrt_status` other than MDRT_OK."""
    return _BY_STATUS.get(status, InternalError)(message)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turns the `KeyboardInterrupt` of Ctrl-C into `Interrupted`, a cancelled call."""
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt:
        raise Interrupted("interrupted") from None
