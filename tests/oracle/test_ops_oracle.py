"""Every reference op against PyTorch in float64."""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mdrt.graph import op_table
from mdrt.ops import REFERENCES, Case

torch = pytest.importorskip("torch")
functional = torch.nn.functional

pytestmark = pytest.mark.oracle

Array = NDArray[Any]
CASES = [(op, index) for op, reference in REFERENCES.items() for index in range(len(reference.cases))]


def random_inputs(op: str, case: Case) -> list[Array]:
    generator = np.random.default_rng(zlib.crc32(f"{op} {case}".encode()))
    inputs = [generator.standard_normal(shape).astype(np.float32) for shape in case.shapes]
    if op == "embedding":
        inputs[0] = generator.integers(0, case.attributes["num_embeddings"], case.shapes[0], dtype=np.int32)
    if op == "timestep_embedding":
        inputs[0] = generator.integers(0, 1000, case.shapes[0]).astype(np.float32)
    return inputs


def nchw(x: Any) -> Any:
    return x.permute(0, x.ndim - 1, *range(1, x.ndim - 1))


def nhwc(x: Any) -> Any:
    return x.permute(0, *range(2, x.ndim), 1)


def conv2d(
    x: Any, weight: Any, bias: Any = None, *, stride: list[int], pads: list[int], groups: int = 1, **_: Any
) -> Any:
    above, left, below, right = pads
    padded = functional.pad(nchw(x), (left, right, above, below))
    return nhwc(functional.conv2d(padded, weight, bias, stride, groups=groups))


def depthwise_conv2d(x: Any, weight: Any, bias: Any = None, **attributes: Any) -> Any:
    return conv2d(x, weight[:, None], bias, groups=weight.shape[0], **attributes)


def attention(q: Any, k: Any, v: Any, *, num_heads: int, attention_fn: str, is_causal: str) -> Any:
    query, key, value = (x.flatten(1, -2).unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (q, k, v))
    if attention_fn == "relu":
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        out = functional.relu(scores) / key.shape[-2] @ value
    else:
        out = functional.scaled_dot_product_attention(query, key, value, is_causal=is_causal == "true")
    return out.transpose(1, 2).flatten(2).reshape(q.shape)


def group_norm(x: Any, weight: Any, bias: Any, *, num_groups: int, eps: float, **_: Any) -> Any:
    return nhwc(functional.group_norm(nchw(x), num_groups, weight, bias, eps))


def gated_unit(x: Any, *, act_fn: str) -> Any:
    value, gate = x.chunk(2, -1)
    return value * (functional.silu if act_fn == "silu" else functional.gelu)(gate)


def add(a: Any, b: Any) -> Any:
    return a + (b if a.ndim == b.ndim else b.reshape(b.shape[0], *[1] * (a.ndim - 2), -1))


def timestep_embedding(timestep: Any, *, embedding_dim: int) -> Any:
    half = embedding_dim // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
    angle = timestep.float()[:, None] * frequency[None]
    return torch.cat([angle.cos(), angle.sin()], -1).double()


ORACLES: dict[str, Any] = {
    "conv2d": conv2d,
    "depthwise_conv2d": depthwise_conv2d,
    "linear": lambda x, weight, bias=None, **_: functional.linear(x, weight, bias),
    "attention": attention,
    "group_norm": group_norm,
    "layer_norm": lambda x, weight, bias, eps, **_: functional.layer_norm(x, x.shape[-1:], weight, bias, eps),
    "silu": functional.silu,
    "gelu": functional.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gated_unit": gated_unit,
    "add": add,
    "concat": lambda *x: torch.cat(x, -1),
    "upsample": lambda x, scale_factor: nhwc(
        functional.interpolate(nchw(x), scale_factor=scale_factor, mode="nearest")
    ),
    "resize_like": lambda x, like: nhwc(functional.interpolate(nchw(x), size=like.shape[1:3], mode="nearest")),
    "embedding": lambda ids, weight, position, **_: weight[ids.long()] + position[: ids.shape[1]],
    "timestep_embedding": timestep_embedding,
}


def test_every_op_has_reference_and_oracle() -> None:
    assert set(op_table()) == set(REFERENCES) == set(ORACLES)


@pytest.mark.parametrize(("op", "index"), CASES, ids=[f"{op}-{index}" for op, index in CASES])
def test_reference_matches_pytorch(op: str, index: int) -> None:
    case = REFERENCES[op].cases[index]
    inputs = random_inputs(op, case)
    out = REFERENCES[op](inputs, case.attributes)
    tensors = [
        torch.from_numpy(x if op == "embedding" and x.dtype == np.int32 else x.astype(np.float64)) for x in inputs
    ]
    expected = ORACLES[op](*tensors, **case.attributes).numpy()
    assert out.dtype == np.float64
    assert out.shape == expected.shape
    # Single angles may be one ulp of float32 off: PyTorch's exponential is not correctly rounded.
    tolerance = 1e-4 if op == "timestep_embedding" else 1e-12
    np.testing.assert_allclose(out, expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max())))
