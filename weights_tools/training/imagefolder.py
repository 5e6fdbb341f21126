"""Any folder of captioned pictures, as `datasets` lays it out: pictures, and metadata.jsonl with a line for each.

A line is an object with `file_name`, relative to the folder, and `text`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mdrt.errors import FileError


def read_captions(folder: Path) -> list[str]:
    """The captions in the order of metadata.jsonl; errors as `read_entries`."""
    return [text for _, text in read_entries(folder)]


def read_entries(folder: Path) -> list[tuple[Path, str]]:
    """Picture files and their captions.

    Raises:
        FileError: metadata.jsonl is missing or empty, or one of its lines is not as described above.
    """
    metadata = folder / "metadata.jsonl"
    try:
        lines = metadata.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FileError(f"cannot read {metadata}: {error.strerror}; it must name the pictures of the folder") from error
    entries = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entry = json.loads(line)
                entries.append((folder / str(entry["file_name"]), str(entry["text"])))
            except (ValueError, KeyError, TypeError) as error:
                raise FileError(f"{metadata}, line {number}: no object with file_name and text ({error})") from error
    if not entries:
        raise FileError(f"{metadata} is empty; it must name the pictures of the folder")
    return entries


def read_pictures(folder: Path, size: int) -> Iterator[NDArray[np.uint8]]:
    """The pictures in the order of metadata.jsonl: (size, size, 3) uint8, the middle square, what is clear made white.

    Raises:
        FileError: as `read_entries`, or a picture cannot be read.
    """
    for path, _ in read_entries(folder):
        try:
            with Image.open(path) as image:
                picture = Image.new("RGBA", image.size, "white")
                picture.alpha_composite(image.convert("RGBA"))
        except (OSError, ValueError) as error:
            raise FileError(f"{path} is no readable picture: {error}") from error
        yield np.asarray(ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.LANCZOS))
