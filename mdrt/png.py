"""PNG files with everything in them that is needed to make the picture again."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, BinaryIO

from mdrt.errors import FileError, InvalidArgumentError, WriteError
from mdrt.files import replacing

if TYPE_CHECKING:
    from PIL.Image import Image

_SCHEDULER_TITLES = {"ddim": "DDIM", "ufogen": "UFOGen"}


def info(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The text entries of a picture: `mdrt`, JSON, and `parameters`, the line that A1111's web UI and sd.cpp write."""
    return {"mdrt": json.dumps(parameters, ensure_ascii=False), "parameters": _web_ui_text(parameters)}


def _web_ui_text(parameters: Mapping[str, Any]) -> str:
    lines = [parameters["prompt"]]
    if parameters["negative_prompt"]:
        lines.append(f"Negative prompt: {parameters['negative_prompt']}")
    scheduler = parameters["scheduler"]
    values = {
        "Steps": parameters["num_inference_steps"],
        "Sampler": _SCHEDULER_TITLES.get(scheduler, scheduler),
        "CFG scale": f"{parameters['guidance_scale']:g}",
        "Seed": parameters["seed"],
        "Size": f"{parameters['width']}x{parameters['height']}",
        "Model": os.path.splitext(parameters["model"])[0],
        "RNG": parameters["noise"],
        "Version": f"mdrt {parameters['version']}",
    }
    lines.append(", ".join(f"{key}: {value}" for key, value in values.items()))
    return "\n".join(lines)


def write(image: Image, target: str | PathLike[str] | BinaryIO) -> None:
    """Writes a picture of `Pipeline` as PNG with its text entries; a file only appears when it is complete.

    Raises:
        WriteError: the file cannot be written; nothing is left behind, an old file stays as it was.
    """
    from PIL.PngImagePlugin import PngInfo

    entries = PngInfo()
    for key in ("mdrt", "parameters"):
        if key in image.info:
            entries.add_text(key, image.info[key])
    if not isinstance(target, (str, PathLike)):
        image.save(target, "PNG", pnginfo=entries)
        target.flush()
        return
    path = os.fspath(target)
    if not os.path.exists(path) or os.path.isfile(path):
        with replacing(path) as file:
            image.save(file, "PNG", pnginfo=entries)
        return
    try:
        with open(path, "wb") as file:  # a device or a pipe, which must not be replaced
            image.save(file, "PNG", pnginfo=entries)
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """The text entries of a picture that `write` made: `mdrt`, parsed, and `parameters`; those that are there.

    Raises:
        FileError: the file cannot be read.
        InvalidArgumentError: it is no picture, or it has none of the entries.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            texts: dict[str, Any] = {key: image.info[key] for key in ("mdrt", "parameters") if key in image.info}
    except UnidentifiedImageError:
        raise InvalidArgumentError(f"{os.fspath(path)} is neither a bundle nor a picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FileError(f"cannot read {os.fspath(path)}: {getattr(error, 'strerror', None) or error}") from error
    if not texts:
        raise InvalidArgumentError(f"{os.fspath(path)} says nothing about how it was made")
    if "mdrt" in texts:
        try:
            texts["mdrt"] = json.loads(texts["mdrt"])
        except ValueError as error:
            raise InvalidArgumentError(f"{os.fspath(path)}: the entry 'mdrt' is not JSON: {error}") from error
    return texts
