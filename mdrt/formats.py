"""How weights are stored, and which weights a format concerns. Layouts and conversion: csrc/formats.cc."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import InvalidArgumentError
from mdrt.graph import Weight

FORMATS = ("fp32", "fp16")
# Vectors and depthwise weights are small and decide much: they stay fp32 in every format.
_CONVERTED_KINDS = ("panel", "table")


def check_format(format: str) -> None:
    """Raises InvalidArgumentError unless `format` is one of FORMATS."""
    if format not in FORMATS:
        raise InvalidArgumentError(f"format {format!r} is not one of {', '.join(FORMATS)}")


def stored_format(format: str, weight: Weight) -> str:
    """The format of one weight of a component in `format`."""
    return format if weight.kind in _CONVERTED_KINDS else "fp32"


def stored_values(format: str, weight: Weight, array: NDArray[Any]) -> NDArray[np.float32]:
    """The values of a weight as a component in `format` stores them, float32 in checkpoint layout.

    Raises:
        InvalidArgumentError: a finite value does not fit into the format.
    """
    values = np.asarray(array, dtype=np.float32).reshape(weight.shape)
    if stored_format(format, weight) == "fp32":
        return values
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).astype(np.float32)
    if np.any(np.isinf(halves) & np.isfinite(values)):
        raise InvalidArgumentError(
            f"weight {weight.name} reaches {abs(values).max():g}, more than fp16 holds; use fp32"
        )
    return halves
