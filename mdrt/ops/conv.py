"""References of the convolutions: float64 sums over the taps of the kernel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mdrt.ops.int8 import Quantised, as_floats
from mdrt.ops.reference import Array, Case, Reference


def conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    weight_scale: Array | None = None,
    weight_sum: Array | None = None,
    input_scale: Array | None = None,
    input_zero_point: Array | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
) -> Array:
    """Convolution with zeros around the image.

    Args:
        x: (n, h, w, in_channels).
        weight: (out_channels, in_channels, kernel_h, kernel_w).
        bias: (out_channels); always there when the weight is int8.
        weight_scale: (out_channels) when `weight` is int8.
        weight_sum: (out_channels), the sums of its integers, when `x` is quantised too; kernels need their values.
        input_scale, input_zero_point: (1) of an input that is quantised with them, not with a scale for each pixel.
        stride: down, right.
        pads: zeros above, left, below, right.

    Returns:
        (n, out_h, out_w, out_channels), out_h = (h + above + below - kernel_h) // stride + 1; float64, but float32 when
        integers are multiplied.
    """
    if weight_scale is not None and weight_sum is None:
        weight = as_floats(weight, weight_scale)
    elif weight_scale is not None and bias is not None:
        quantised = Quantised.of(x, input_scale, input_zero_point)
        sums = conv2d(quantised.integers, weight, stride=stride, pads=pads)
        return quantised.finish(sums, weight_scale, bias)
    kernel = weight.astype(np.float64)
    out: Array | float = 0.0
    for ky, kx, window in _taps(x, kernel.shape[2:], stride, pads):
        out = out + window @ kernel[:, :, ky, kx].T
    return np.asarray(out) + (0.0 if bias is None else bias.astype(np.float64))


def depthwise_conv2d(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
) -> Array:
    """Convolution of every channel by itself; `weight` is (channels, kernel_h, kernel_w), the rest as in `conv2d`."""
    kernel = weight.astype(np.float64)
    out: Array | float = 0.0
    for ky, kx, window in _taps(x, kernel.shape[1:], stride, pads):
        out = out + window * kernel[:, ky, kx]
    return np.asarray(out) + (0.0 if bias is None else bias.astype(np.float64))


def _taps(
    x: Array, kernel_size: Sequence[int], stride: Sequence[int], pads: Sequence[int]
) -> list[tuple[int, int, Array]]:
    """(ky, kx, the inputs (n, out_h, out_w, channels) that the tap multiplies) of every tap."""
    above, left, below, right = pads
    padded = np.pad(x.astype(np.float64), ((0, 0), (above, below), (left, right), (0, 0)))
    out_h = (padded.shape[1] - kernel_size[0]) // stride[0] + 1
    out_w = (padded.shape[2] - kernel_size[1]) // stride[1] + 1
    return [
        (
            ky,
            kx,
            padded[:, ky : ky + out_h * stride[0] : stride[0], kx : kx + out_w * stride[1] : stride[1]][
                :, :out_h, :out_w
            ],
        )
        for ky in range(kernel_size[0])
        for kx in range(kernel_size[1])
    ]


def _conv2d_magnitude(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    weight_scale: Array | None = None,
    *integers: Array,
    stride: Sequence[int],
    pads: Sequence[int],
) -> Array:
    if integers:
        return np.zeros(1)
    if weight_scale is not None:
        weight = as_floats(weight, weight_scale)
    return conv2d(abs(x), abs(weight), None if bias is None else abs(bias), stride=stride, pads=pads)


def _depthwise_magnitude(x: Array, weight: Array, bias: Array | None = None, **attributes: Sequence[int]) -> Array:
    return depthwise_conv2d(abs(x), abs(weight), None if bias is None else abs(bias), **attributes)


def _conv(
    n: int, h: int, w: int, c_in: int, c_out: int, kernel: int, stride: int, pads: tuple[int, int, int, int]
) -> Case:
    sizes = {"in_channels": c_in, "out_channels": c_out, "kernel_size": [kernel, kernel], "stride": [stride, stride]}
    return Case(((n, h, w, c_in), (c_out, c_in, kernel, kernel), (c_out,)), {**sizes, "pads": list(pads)})


def _depthwise(n: int, h: int, w: int, c: int, stride: int, pads: tuple[int, int, int, int]) -> Case:
    attributes = {"channels": c, "kernel_size": [3, 3], "stride": [stride, stride], "pads": list(pads)}
    return Case(((n, h, w, c), (c, 3, 3)), attributes)


REFERENCES = {
    "conv2d": Reference(
        conv2d,
        uses=("stride", "pads"),
        tolerance=4,
        magnitude=_conv2d_magnitude,
        cases=[
            *(_conv(1, 5, 7, c, 17, 3, 1, (1, 1, 1, 1)) for c in (1, 3, 8, 15, 16, 17, 31, 33, 48)),
            *(_conv(1, 4, 9, 16, c, 1, 1, (0, 0, 0, 0)) for c in (1, 3, 8, 15, 16, 17, 31, 33, 48)),
            *(
                _conv(1, h, w, 8, 16, 3, 1, (1, 1, 1, 1))
                for h, w in ((1, 1), (1, 20), (20, 1), (2, 3), (7, 8), (9, 17))
            ),
            *(_conv(2, h, w, 17, 33, 3, 2, (1, 1, 1, 1)) for h, w in ((1, 1), (2, 2), (5, 8), (13, 9))),
            *(_conv(1, h, w, 8, 15, 3, 2, (0, 0, 1, 1)) for h, w in ((2, 2), (6, 8), (16, 3))),
        ],
    ),
    "depthwise_conv2d": Reference(
        depthwise_conv2d,
        uses=("stride", "pads"),
        tolerance=4,
        magnitude=_depthwise_magnitude,
        cases=[
            *(_depthwise(1, 5, 7, c, 1, (1, 1, 1, 1)) for c in (1, 3, 8, 15, 16, 17, 31, 33, 48)),
            *(_depthwise(2, h, w, 17, 1, (1, 1, 1, 1)) for h, w in ((1, 1), (1, 20), (20, 1), (2, 3), (9, 17))),
            *(_depthwise(1, h, w, 33, 2, (1, 1, 1, 1)) for h, w in ((1, 1), (2, 2), (5, 8), (13, 9))),
        ],
    ),
}
