"""What conv2d and linear share when their weights are int8: exact sums between float32 steps, or weights as floats."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mdrt.ops.reference import Array
from mdrt.quantise import quantise_dynamic, quantise_static


def as_floats(weight: Array, scale: Array) -> Array:
    """float32: integers times the scale of their column, the first dimension."""
    return np.asarray(weight.astype(np.float32) * scale.astype(np.float32).reshape(-1, *[1] * (weight.ndim - 1)))


@dataclass(frozen=True)
class Quantised:
    """A layer's input: integers less their zero point, float64 so that sums are exact, and the scale of each row."""

    integers: Array
    scale: Array

    @classmethod
    def of(cls, x: Array, input_scale: Array | None, input_zero_point: Array | None) -> Quantised:
        """With the scale and zero point given, each (1), or with a scale for each row of the last dimension."""
        if input_scale is None or input_zero_point is None:
            integers, scale = quantise_dynamic(x)
            return cls(integers.astype(np.float64), scale)
        zero_point = int(input_zero_point[0])
        integers = quantise_static(x, np.float32(input_scale[0]), zero_point)
        return cls(integers.astype(np.float64) - zero_point, input_scale.astype(np.float32))

    def finish(self, sums: Array, weight_scale: Array, bias: Array) -> Array:
        """float32: sums * (scale * weight_scale) + bias, with a rounding at every step."""
        scale = self.scale * weight_scale.astype(np.float32)
        return np.asarray(sums.astype(np.float32) * scale + bias.astype(np.float32))
