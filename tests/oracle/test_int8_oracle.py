"""int8 layers of the reference against a simulation in PyTorch: exact integer sums in float64, scales in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mdrt import kernels

torch = pytest.importorskip("torch")
functional = torch.nn.functional

pytestmark = pytest.mark.oracle

RANGES = [None, (-3.0, 4.0), (-0.28, 2.5), (0.5, 3.0)]


def columns(weight: Any) -> tuple[Any, Any]:
    """Integers in float64 and a scale for each output."""
    scale = weight.flatten(1).abs().amax(1) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    inverse = (1 / scale).reshape(-1, *[1] * (weight.ndim - 1))
    return torch.round(weight * inverse).double(), scale


def quantised(x: Any, input_range: tuple[float, float] | None) -> tuple[Any, Any, int]:
    """Integers in float64, scale and zero point of an input whose channels are last."""
    if input_range is None:
        scale = x.abs().amax(-1, keepdim=True) / 127
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        return torch.round(x * (1 / scale)).double(), scale, 0
    low, high = torch.tensor([min(input_range[0], 0.0), max(input_range[1], 0.0)])
    scale = (high - low) / 255
    zero_point = int(-128 - torch.round(low / scale))
    q = torch.clamp(torch.round(x * (1 / scale)) + zero_point, -128, 127)
    return q.double(), scale, zero_point


def arrays(*shapes: tuple[int, ...]) -> list[Any]:
    generator = np.random.default_rng(sum(sum(shape) for shape in shapes))
    return [generator.standard_normal(shape).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("input_range", RANGES)
@pytest.mark.parametrize(("rows", "c_in", "c_out"), [(1, 1, 1), (7, 16, 16), (33, 300, 17), (20, 1280, 40)])
def test_linear(rows: int, c_in: int, c_out: int, input_range: tuple[float, float] | None) -> None:
    x, weight, bias = arrays((2, rows, c_in), (c_out, c_in), (c_out,))
    x[0, 0] = 0
    q, scale, zero_point = quantised(torch.from_numpy(x), input_range)
    q_w, s_w = columns(torch.from_numpy(weight))
    sums = functional.linear(q, q_w) - zero_point * q_w.sum(1)
    expected = sums.float() * (scale * s_w) + torch.from_numpy(bias)
    found = kernels.linear(x, weight, bias, format="int8", input_range=input_range, backend="reference")
    np.testing.assert_array_equal(found, expected.numpy())


@pytest.mark.parametrize("input_range", RANGES[1:])
@pytest.mark.parametrize(
    ("kernel", "stride", "pads"), [(1, 1, (0, 0, 0, 0)), (3, 1, (1, 1, 1, 1)), (3, 2, (0, 0, 1, 1))]
)
def test_convolution(
    kernel: int, stride: int, pads: tuple[int, int, int, int], input_range: tuple[float, float]
) -> None:
    x, weight, bias = arrays((2, 7, 8, 37), (21, 37, kernel, kernel), (21,))
    q, scale, zero_point = quantised(torch.from_numpy(x), input_range)
    q_w, s_w = columns(torch.from_numpy(weight))
    above, left, below, right = pads
    padded = functional.pad(q.permute(0, 3, 1, 2), (left, right, above, below), value=zero_point)
    sums = functional.conv2d(padded, q_w, stride=stride).permute(0, 2, 3, 1) - zero_point * q_w.sum((1, 2, 3))
    expected = sums.float() * (scale * s_w) + torch.from_numpy(bias)
    options: dict[str, Any] = {"format": "int8", "input_range": input_range, "backend": "reference"}
    found = kernels.conv2d(x, weight, bias, stride=stride, pads=pads, **options)
    np.testing.assert_array_equal(found, expected.numpy())


def test_dynamic_convolution() -> None:
    x, weight, bias = arrays((2, 5, 6, 37), (21, 37, 1, 1), (21,))
    q, scale, _ = quantised(torch.from_numpy(x), None)
    q_w, s_w = columns(torch.from_numpy(weight))
    expected = functional.linear(q, q_w[:, :, 0, 0]).float() * (scale * s_w) + torch.from_numpy(bias)
    found = kernels.conv2d(x, weight, bias, format="int8", backend="reference")
    np.testing.assert_array_equal(found, expected.numpy())


def test_weights_alone() -> None:
    x, weight, bias = arrays((2, 7, 8, 37), (21, 37, 3, 3), (21,))
    q_w, s_w = columns(torch.from_numpy(weight))
    floats = (q_w.float() * s_w[:, None, None, None]).double()
    image = torch.from_numpy(x).permute(0, 3, 1, 2).double()
    expected = functional.conv2d(image, floats, torch.from_numpy(bias).double(), padding=1).permute(0, 2, 3, 1)
    found = kernels.conv2d(x, weight, bias, pads=1, format="int8_weights", backend="reference")
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=1e-6)
    matrix = weight[:, :, 0, 0]
    q_w, s_w = columns(torch.from_numpy(matrix))
    rows = torch.from_numpy(x).double() @ (q_w.float() * s_w[:, None]).double().T + torch.from_numpy(bias).double()
    found = kernels.linear(x, matrix, bias, format="int8_weights", backend="reference")
    np.testing.assert_allclose(found, rows.numpy(), rtol=1e-6, atol=1e-6)


def test_embedding() -> None:
    table, positions = arrays((11, 70), (9, 70))
    ids = np.array([[0, 10, 3, 3, 7]])
    (q, s), (q_p, s_p) = columns(torch.from_numpy(table)), columns(torch.from_numpy(positions))
    rows = functional.embedding(torch.from_numpy(ids), q.float() * s[:, None])
    expected = rows + (q_p.float() * s_p[:, None])[:5]
    found = kernels.embedding(ids, table, positions, format="int8", backend="reference")
    np.testing.assert_array_equal(found, expected.numpy())
