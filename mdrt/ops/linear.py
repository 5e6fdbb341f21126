"""Reference of the linear layer."""

from __future__ import annotations

import numpy as np

from mdrt.ops.int8 import Quantised, as_floats
from mdrt.ops.reference import Array, Case, Reference


def linear(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    weight_scale: Array | None = None,
    weight_sum: Array | None = None,
    input_scale: Array | None = None,
    input_zero_point: Array | None = None,
) -> Array:
    """x (..., in_features) times weight (out_features, in_features) transposed, plus bias (out_features).

    The other arguments belong to an int8 weight, as in `conv2d`. The result is float64, but float32 when integers are
    multiplied.
    """
    if weight_scale is not None and weight_sum is None:
        weight = as_floats(weight, weight_scale)
    elif weight_scale is not None and bias is not None:
        quantised = Quantised.of(x, input_scale, input_zero_point)
        return quantised.finish(linear(quantised.integers, weight), weight_scale, bias)
    out = x.astype(np.float64) @ weight.astype(np.float64).T
    return np.asarray(out if bias is None else out + bias.astype(np.float64))


def _magnitude(
    x: Array, weight: Array, bias: Array | None = None, weight_scale: Array | None = None, *integers: Array
) -> Array:
    if integers:
        return np.zeros(1)
    if weight_scale is not None:
        weight = as_floats(weight, weight_scale)
    return linear(abs(x), abs(weight), None if bias is None else abs(bias))


def _case(rows: tuple[int, ...], c_in: int, c_out: int, bias: bool) -> Case:
    shapes = ((*rows, c_in), (c_out, c_in)) + (((c_out,),) if bias else ())
    return Case(shapes, {"in_features": c_in, "out_features": c_out})


REFERENCES = {
    "linear": Reference(
        linear,
        tolerance=4,
        magnitude=_magnitude,
        cases=[
            *(_case((1, 7), c, 17, True) for c in (1, 3, 8, 15, 16, 17, 31, 33, 48, 300)),
            *(_case((2, 3), 16, c, False) for c in (1, 3, 8, 15, 16, 17, 31, 33, 48)),
            *(_case((rows,), 24, 40, True) for rows in (1, 2, 5, 6, 7, 11, 12, 13, 20)),
            _case((2, 3, 5), 33, 31, True),
        ],
    )
}
