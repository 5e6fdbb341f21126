"""Every kernel on every instruction set of this machine against its reference, and `mdrt.kernels`."""

import numpy as np
import pytest

import mdrt
from mdrt import _core, kernels, selftest
from mdrt.graph import op_table
from mdrt.ops import REFERENCES
from mdrt.ops.int8 import Quantised

ISAS = [isa["name"] for isa in _core.build_info()["isas"] if isa["usable"]]


def array(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_every_op_has_a_reference_and_a_function():
    functions = {"self_attention" if op == "attention" else op for op in op_table()}
    assert set(REFERENCES) == set(op_table())
    assert all(callable(getattr(kernels, name)) for name in functions)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", sorted(REFERENCES))
def test_kernel_against_reference(op, isa):
    result = selftest.check_kernel(op, isa)
    assert result["cases"] > 0 and result["failed"] == 0, result


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("op", "format"),
    [(op, format) for op in ("conv2d", "linear") for format in ("int8", "int8_weights")] + [("embedding", "int8")],
)
def test_int8_kernel_against_reference(op, format, isa):
    result = selftest.check_kernel(op, isa, format=format)
    assert result["cases"] > 0 and result["failed"] == 0, result


def test_a_wrong_kernel_is_noticed(monkeypatch):
    monkeypatch.setitem(REFERENCES, "silu", REFERENCES["gelu"])
    result = selftest.check_kernel("silu", "generic")
    assert result["failed"] == result["cases"] and result["worst"] > 1


def test_a_wrong_int8_kernel_is_noticed(monkeypatch):
    right = Quantised.finish
    monkeypatch.setattr(Quantised, "finish", lambda *arguments: np.nextafter(right(*arguments), np.float32(np.inf)))
    for op in ("conv2d", "linear"):
        result = selftest.check_kernel(op, "generic", format="int8")
        assert result["failed"] == result["cases"] and result["worst"] > 1


def test_causal_attention_does_not_look_ahead():
    q, k, v = array(1, 5, 8), array(1, 5, 8, seed=1), array(1, 5, 8, seed=2)
    causal = kernels.self_attention(q, k, v, num_heads=2, is_causal=True)
    assert np.allclose(causal[0, 0], v[0, 0], atol=1e-6)
    assert not np.allclose(kernels.self_attention(q, k, v, num_heads=2)[0, 0], v[0, 0], atol=1e-2)


def calls(**options):
    x, ids = array(2, 5, 7, 12), np.arange(10).reshape(2, 5)
    q, k, v = array(2, 6, 16), array(2, 9, 16, seed=1), array(2, 9, 16, seed=2)
    yield "conv2d", kernels.conv2d(x, array(5, 12, 3, 3), array(5), stride=2, pads=(0, 0, 1, 1), **options)
    yield "conv2d without bias", kernels.conv2d(x, array(5, 12, 1, 1), **options)
    yield "depthwise_conv2d", kernels.depthwise_conv2d(x, array(12, 3, 3), array(12), pads=1, **options)
    yield (
        "separable_conv2d",
        kernels.separable_conv2d(x, array(12, 3, 3), array(20, 12, 1, 1), None, array(20), pads=1, **options),
    )
    yield "linear", kernels.linear(x, array(3, 12), array(3), **options)
    yield "self_attention", kernels.self_attention(q, q, q, num_heads=2, is_causal=True, **options)
    yield "cross_attention", kernels.cross_attention(q, k, v, num_heads=4, attention_fn="relu", **options)
    yield "shared_kv_attention", kernels.shared_kv_attention(q, k, num_heads=1, **options)
    yield "group_norm", kernels.group_norm(x, array(12), array(12, seed=1), num_groups=3, **options)
    yield "layer_norm", kernels.layer_norm(q, array(16), array(16, seed=1), **options)
    yield "silu", kernels.silu(x, **options)
    yield "gelu", kernels.gelu(x, **options)
    yield "quick_gelu", kernels.quick_gelu(x, **options)
    yield "gated_unit", kernels.gated_unit(q, act_fn="gelu", **options)
    yield "add", kernels.add(x, array(2, 12), **options)
    yield "concat", kernels.concat([x, array(2, 5, 7, 3), x], **options)
    yield "upsample", kernels.upsample(x, scale_factor=2, **options)
    yield "resize_like", kernels.resize_like(x, array(2, 9, 14, 1), **options)
    yield "embedding", kernels.embedding(ids, array(10, 8), array(6, 8, seed=1), **options)
    yield "timestep_embedding", kernels.timestep_embedding([0, 1, 999], embedding_dim=32, **options)


@pytest.mark.parametrize("format", ["fp32", "fp16", "int8_weights"])
@pytest.mark.parametrize("isa", ISAS)
def test_functions_against_reference(isa, format):
    expected = dict(calls(format=format, backend="reference"))
    for name, result in calls(format=format, isa=isa, threads=2):
        assert result.dtype == np.float32 and result.shape == expected[name].shape, name
        assert np.abs(result - expected[name]).max() <= 4e-3 * np.abs(expected[name]).max(), name
        if format == "fp32":
            assert np.abs(result - expected[name]).max() <= 1e-5 * np.abs(expected[name]).max(), name


def test_threads_do_not_change_bytes():
    one = dict(calls(threads=1))
    for threads in (2, 3, 5):
        for name, result in calls(threads=threads):
            assert np.array_equal(result, one[name]), (name, threads)


def test_any_array_is_taken():
    x = array(1, 4, 6, 8)
    expected = kernels.linear(x, np.eye(8))
    for same in (x.astype(np.float64), np.asfortranarray(x), x[:, ::-1][:, ::-1], x.tolist()):
        assert np.array_equal(kernels.linear(same, np.eye(8)), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda: kernels.conv2d(array(1, 4, 4, 3), array(2, 4, 3, 3)),
        lambda: kernels.conv2d(array(1, 2, 2, 3), array(2, 3, 3, 3)),
        lambda: kernels.conv2d(array(1, 4, 4, 3), array(2, 3, 3)),
        lambda: kernels.conv2d(array(1, 4, 4, 3), array(2, 3, 9, 9), pads=3),
        lambda: kernels.conv2d(array(1, 4, 4, 3), array(2, 3, 3, 3), stride=0),
        lambda: kernels.conv2d(array(1, 4, 4, 3), array(2, 3, 3, 3), pads=(1, 1)),
        lambda: kernels.conv2d(array(1, 4, 4, 3), array(2, 3, 3, 3), array(3)),
        lambda: kernels.linear(array(2, 3), array(4, 5)),
        lambda: kernels.linear(array(0, 3), array(4, 3)),
        lambda: kernels.linear(np.array("x"), array(4, 3)),
        lambda: kernels.self_attention(array(1, 4, 6), array(1, 4, 6), array(1, 4, 6), num_heads=4),
        lambda: kernels.self_attention(
            array(1, 4, 6), array(1, 4, 6), array(1, 4, 6), num_heads=2, attention_fn="tanh"
        ),
        lambda: kernels.cross_attention(array(1, 4, 6), array(2, 4, 6), array(2, 4, 6), num_heads=2),
        lambda: kernels.group_norm(array(1, 4, 4, 6), array(6), array(6), num_groups=4),
        lambda: kernels.group_norm(array(1, 4, 4, 6), array(6), array(6), num_groups=2, eps=0),
        lambda: kernels.gated_unit(array(1, 4, 5)),
        lambda: kernels.add(array(1, 4, 5), array(1, 5, 5)),
        lambda: kernels.concat([array(1, 4, 4, 5)]),
        lambda: kernels.upsample(array(1, 4, 4, 5), scale_factor=0),
        lambda: kernels.embedding([[10]], array(10, 8), array(6, 8)),
        lambda: kernels.embedding([[0.5]], array(10, 8), array(6, 8)),
        lambda: kernels.embedding([[0] * 7], array(10, 8), array(6, 8)),
        lambda: kernels.timestep_embedding([1], embedding_dim=3),
        lambda: kernels.silu(array(1, 4), backend="gpu"),
        lambda: kernels.silu(array(1, 4), format="int3"),
        lambda: kernels.silu(array(1, 4), threads=-1),
    ],
)
def test_wrong_calls(call):
    with pytest.raises(mdrt.InvalidArgumentError):
        call()


def test_unknown_isa():
    with pytest.raises(mdrt.Error, match="mmx"):
        kernels.silu(array(1, 4), isa="mmx")
