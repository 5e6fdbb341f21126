"""Native kernels against the NumPy references: every op around the sizes of tiles, on every instruction set."""

import random
import zlib

import numpy as np
import pytest

from mdrt import _core
from mdrt.formats import ComponentFormat
from mdrt.graph import Graph, op_table
from mdrt.interpreter import Interpreter
from mdrt.ops import REFERENCES, Case
from mdrt.ops.int8 import as_floats
from mdrt.quantise import layers, quantise_columns

ISAS = [isa["name"] for isa in _core.build_info()["isas"] if isa["usable"]]


def random_inputs(op, case):
    generator = np.random.default_rng(zlib.crc32(f"{op} {case}".encode()))
    inputs = [generator.standard_normal(shape).astype(np.float32) for shape in case.shapes]
    if op == "embedding":
        inputs[0] = generator.integers(0, case.attributes["num_embeddings"], case.shapes[0], dtype=np.int32)
    if op == "timestep_embedding":
        inputs[0] = generator.uniform(0, 999, case.shapes[0]).astype(np.float32)
    return inputs


def one_node(op, case, inputs):
    """A graph of one node with its feeds and weights."""
    graph, feeds, weights, names = Graph(), {}, {}, []
    slots = op_table()[op]["inputs"]
    for index, array in enumerate(inputs):
        slot = slots[min(index, len(slots) - 1)]
        names.append(f"{slot['name']}{index}")
        if "weight" in slot["kind"]:
            weights[names[-1]] = array
        else:
            feeds[names[-1]] = array
            graph.input(names[-1], array.shape, "int32" if array.dtype == np.int32 else "fp32")
    graph.output(graph.add(op, names, name="node", **case.attributes), "y")
    return graph, feeds, weights


def check(op, case, **options):
    reference, inputs = REFERENCES[op], random_inputs(op, case)
    graph, feeds, weights = one_node(op, case, inputs)
    result = Interpreter(graph, weights, **options).run(feeds)["y"]
    expected = reference(inputs, case.attributes)
    assert result.dtype == np.float32
    assert result.shape == expected.shape, case
    share = np.abs(result - expected) / np.maximum(reference.bound(inputs, case.attributes), 1e-45)
    assert share.max() <= 1, f"{op} {case}: error {share.max():.2f} of the bound"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", REFERENCES)
def test_kernel_matches_reference(op, isa):
    for case in REFERENCES[op].cases:
        check(op, case, threads=1, isa=isa)


def simd_sizes(limit):
    """Powers of two and their double and triple, each with its neighbours."""
    bases = {base * factor for base in (1, 2, 4, 8, 16, 32, 64) for factor in (1, 2, 3)}
    return sorted({size + step for size in bases for step in (-1, 0, 1) if 1 <= size + step <= limit})


def random_conv2d(draw):
    kernel, stride = (
        [draw.choice([1, 1, 2, 3, 3, 3, 5, 7]) for _ in range(2)],
        [draw.choice([1, 1, 2, 3, 4]) for _ in range(2)],
    )
    pads = [draw.randint(0, 3) for _ in range(4)]
    # At least one position for the kernel.
    h, w = (draw.randint(max(1, kernel[i] - pads[i] - pads[i + 2]), max(20, kernel[i])) for i in range(2))
    c_in, c_out = draw.choice(simd_sizes(49)), draw.choice(simd_sizes(49))
    shapes = ((draw.randint(1, 2), h, w, c_in), (c_out, c_in, *kernel)) + (((c_out,),) if draw.random() < 0.7 else ())
    attributes = {"in_channels": c_in, "out_channels": c_out, "kernel_size": kernel, "stride": stride, "pads": pads}
    return Case(shapes, attributes)


def random_depthwise_conv2d(draw):
    case = random_conv2d(draw)
    (n, h, w, c), sizes = case.shapes[0], case.attributes
    shapes = ((n, h, w, c), (c, *sizes["kernel_size"])) + (((c,),) if len(case.shapes) == 3 else ())
    return Case(shapes, {"channels": c, **{key: sizes[key] for key in ("kernel_size", "stride", "pads")}})


def random_linear(draw):
    c_in, c_out = draw.choice(simd_sizes(200)), draw.choice(simd_sizes(100))
    shapes = ((draw.randint(1, 2), draw.choice(simd_sizes(49)), c_in), (c_out, c_in))
    return Case(shapes + (((c_out,),) if draw.random() < 0.7 else ()), {"in_features": c_in, "out_features": c_out})


def random_attention(draw):
    heads, head_dim = draw.randint(1, 5), draw.choice(simd_sizes(65))
    queries, batch, causal = draw.choice(simd_sizes(140)), draw.randint(1, 2), draw.random() < 0.3
    keys = queries if causal else draw.choice(simd_sizes(140))
    shapes = tuple((batch, count, heads * head_dim) for count in (queries, keys, keys))
    words = {"attention_fn": draw.choice(["softmax", "relu"]), "is_causal": "true" if causal else "false"}
    return Case(shapes, {"num_heads": heads, **words})


def random_group_norm(draw):
    groups = draw.randint(1, 8)
    c = groups * draw.randint(1, 9)
    shape = (draw.randint(1, 2), draw.choice(simd_sizes(20)), 1 + draw.choice(simd_sizes(20)), c)
    return Case((shape, (c,), (c,)), {"num_groups": groups, "num_channels": c, "eps": draw.choice([1e-5, 1e-6])})


RANDOM_CASES = {
    "conv2d": random_conv2d,
    "depthwise_conv2d": random_depthwise_conv2d,
    "linear": random_linear,
    "attention": random_attention,
    "group_norm": random_group_norm,
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", RANDOM_CASES)
def test_random_shapes(op, isa):
    for seed in range(60):
        check(op, RANDOM_CASES[op](random.Random(seed)), threads=seed % 3 + 1, isa=isa)


@pytest.mark.parametrize("op", REFERENCES)
def test_same_bytes_for_any_number_of_threads(op):
    for case in REFERENCES[op].cases[-4:]:
        inputs = random_inputs(op, case)
        graph, feeds, weights = one_node(op, case, inputs)
        one, two, five = (Interpreter(graph, weights, threads=n).run(feeds)["y"].tobytes() for n in (1, 2, 5))
        assert one == two == five, case


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["conv2d", "linear", "embedding"])
def test_fp16_weights(op, isa):
    """Half weights: products of exact values, so the fp32 bound holds against the rounded weights."""
    reference = REFERENCES[op]
    for case in reference.cases[:12]:
        inputs = random_inputs(op, case)
        kinds = [slot.get("weight_kind") for slot in op_table()[op]["inputs"]]
        rounded = [
            array.astype(np.float16).astype(np.float32) if kind in ("panel", "table") else array
            for array, kind in zip(inputs, kinds, strict=False)
        ]
        graph, feeds, weights = one_node(op, case, inputs)
        result = Interpreter(graph, weights, threads=1, isa=isa, format="fp16").run(feeds)["y"]
        assert np.array_equal(
            Interpreter(graph, weights, "reference", format="fp16").run(feeds)["y"],
            reference(rounded, case.attributes).astype(np.float32),
        )
        error = np.abs(result - reference(rounded, case.attributes))
        # Activations may be halves between layers, as the format says: half an ulp of fp16 of output and input.
        bound = reference.bound(rounded, case.attributes) + 2.0**-10 * np.abs(
            reference([abs(array) for array in rounded], case.attributes)
        )
        assert (error <= bound).all(), case


def check_int8(op, case, input_range, **options):
    """Integers are exact and the float32 steps around them are prescribed: native and reference give the same bytes."""
    graph, feeds, weights = one_node(op, case, random_inputs(op, case))
    options["format"] = ComponentFormat(
        "int8", {}, {} if input_range is None else dict.fromkeys(layers(graph), input_range)
    )
    result = Interpreter(graph, weights, **options).run(feeds)["y"]
    expected = Interpreter(graph, weights, "reference", format=options["format"]).run(feeds)["y"]
    np.testing.assert_array_equal(result, expected, err_msg=f"{op} {case} {input_range}")


def is_dynamic(op, case):
    kernel = [case.attributes.get(name) for name in ("kernel_size", "stride", "pads")]
    return op != "conv2d" or kernel == [[1, 1], [1, 1], [0] * 4]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["conv2d", "linear", "embedding"])
def test_int8_kernel_matches_reference(op, isa):
    for case in REFERENCES[op].cases:
        if op != "embedding":
            check_int8(op, case, (-2.5, 3.0), threads=1, isa=isa)
        if is_dynamic(op, case):
            check_int8(op, case, None, threads=1, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_int8_random_shapes(op, isa):
    for seed in range(60):
        case = RANDOM_CASES[op](random.Random(seed))
        check_int8(op, case, (-0.28, 2.0 + seed / 10), threads=seed % 3 + 1, isa=isa)
        if is_dynamic(op, case):
            check_int8(op, case, None, threads=seed % 3 + 1, isa=isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["conv2d", "linear"])
def test_int8_weights_are_floats_when_they_are_multiplied(op, isa):
    """The bytes that the same values give when they are stored as floats."""
    cases = [*REFERENCES[op].cases, *(RANDOM_CASES[op](random.Random(seed)) for seed in range(40))]
    for number, case in enumerate(cases):
        graph, feeds, weights = one_node(op, case, random_inputs(op, case))
        options = {"threads": number % 3 + 1, "isa": isa}
        result = Interpreter(graph, weights, format="int8_weights", **options).run(feeds)["y"]
        floats = {**weights, "weight1": as_floats(*quantise_columns(weights["weight1"]))}
        expected = Interpreter(graph, floats, **options).run(feeds)["y"]
        np.testing.assert_array_equal(result, expected, err_msg=f"{op} {case}")
        reference = Interpreter(graph, weights, "reference", format="int8_weights").run(feeds)["y"]
        np.testing.assert_array_equal(reference, Interpreter(graph, floats, "reference").run(feeds)["y"])


def test_reference_bound_is_tight_enough():
    """A wrong tap, a swapped pair of channels or a lost bias exceeds the bound by orders of magnitude."""
    case = Case(((1, 4, 4, 8), (8, 8, 3, 3), (8,)), REFERENCES["conv2d"].cases[2].attributes | {"out_channels": 8})
    x, weight, bias = random_inputs("conv2d", case)
    bound = REFERENCES["conv2d"].bound([x, weight, bias], case.attributes)
    expected = REFERENCES["conv2d"]([x, weight, bias], case.attributes)
    for wrong in ([x, weight[:, ::-1], bias], [x, weight[..., ::-1], bias], [x, weight, 0 * bias]):
        assert (np.abs(REFERENCES["conv2d"](wrong, case.attributes) - expected) > 100 * bound).mean() > 0.9


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["silu", "gelu", "quick_gelu"])
def test_activations_of_any_magnitude(op, isa):
    """No exponential runs over, and none is of an argument that lost its fraction."""
    positive = np.geomspace(1e-38, 1e31, 1200, dtype=np.float32)
    x = np.concatenate([-positive, [0], positive]).reshape(1, 1, -1)
    graph, feeds, weights = one_node(op, Case((x.shape,)), [x])
    result = Interpreter(graph, weights, isa=isa).run(feeds)["y"]
    with np.errstate(over="ignore"):
        expected = REFERENCES[op]([x], {})
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("input_range", [None, (-2.5, 3.0)])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_int8_does_not_hide_what_is_not_finite(isa, input_range, broken):
    """Bytes cannot hold it: the output is NaN, of that run alone."""
    case = REFERENCES["linear"].cases[0]
    graph, feeds, weights = one_node("linear", case, random_inputs("linear", case))
    format = ComponentFormat("int8", {}, {} if input_range is None else dict.fromkeys(layers(graph), input_range))
    interpreter = Interpreter(graph, weights, isa=isa, format=format)
    ((name, good),) = feeds.items()
    bad = good.copy()
    bad.flat[-1] = broken
    assert np.isnan(interpreter.run({name: bad})["y"]).all()
    assert np.isfinite(interpreter.run({name: good})["y"]).all()
