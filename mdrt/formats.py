"""How weights are stored, and which weights a format concerns. Layouts and conversion: csrc/formats.cc."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import InvalidArgumentError
from mdrt.graph import Weight

FORMATS = ("fp32", "fp16", "int8")
# int8_weights: int8 weights that meet float inputs as floats; for layers whose inputs need more than eight bits.
LAYER_FORMATS = (*FORMATS, "int8_weights")
# Vectors and depthwise weights are small and decide much: they stay fp32 in every format.
_CONVERTED_KINDS = ("panel", "table")


@dataclass(frozen=True)
class ComponentFormat:
    """How one component is stored. Layers are called as `mdrt.quantise.layers` calls them.

    Args:
        default: the format of every layer that `layers` does not name, one of LAYER_FORMATS.
        layers: the format of single layers, each one of LAYER_FORMATS.
        input_ranges: (min, max) of the inputs of layers in "int8"; such a layer quantises its input with one scale and
            zero point, any other one with a scale for each pixel or token.
    """

    default: str
    layers: Mapping[str, str] = field(default_factory=dict)
    input_ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def check_format(format: str, formats: Sequence[str] = FORMATS) -> None:
    """Raises InvalidArgumentError unless `format` is one of `formats`."""
    if format not in formats:
        raise InvalidArgumentError(f"format {format!r} is not one of {', '.join(formats)}")


def stored_format(format: str, weight: Weight) -> str:
    """The format of one weight of a layer in `format`: a row of csrc/formats.def."""
    if weight.integers is not None:
        return weight.integers
    if weight.kind not in _CONVERTED_KINDS:
        return "fp32"
    return format


def stored_values(format: str, weight: Weight, array: NDArray[Any]) -> NDArray[np.float32]:
    """The values of a weight that is stored in `format`, float32 in checkpoint layout.

    Raises:
        InvalidArgumentError: a finite value does not fit into the format.
    """
    values = np.asarray(array, dtype=np.float32).reshape(weight.shape)
    if format != "fp16":
        return values
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16).astype(np.float32)
    if np.any(np.isinf(halves) & np.isfinite(values)):
        raise InvalidArgumentError(
            f"weight {weight.name} reaches {abs(values).max():g}, more than fp16 holds; use fp32"
        )
    return halves
