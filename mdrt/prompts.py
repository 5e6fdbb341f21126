"""Files of prompts: one on each line, UTF-8."""

from __future__ import annotations

from os import PathLike

from mdrt.errors import FileError, InvalidArgumentError


def read(path: str | PathLike[str]) -> list[str]:
    """The lines of a file that are not blank.

    Raises:
        FileError: the file cannot be read.
        InvalidArgumentError: it is not UTF-8, or holds no prompt.
    """
    try:
        with open(path, "rb") as file:
            lines = decode(file.read()).splitlines()
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from error
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise InvalidArgumentError(f"{path} holds no prompt")
    return prompts


def decode(data: bytes) -> str:
    """Text from UTF-8, with or without a mark at its beginning.

    Raises:
        InvalidArgumentError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"the prompt is not UTF-8: {error}") from None
