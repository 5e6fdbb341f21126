"""int8: the arithmetic of scales, layers and their formats, and the exact reference."""

import json

import numpy as np
import pytest

import mdrt
from mdrt import _core, kernels
from mdrt.bundle import write_bundle
from mdrt.formats import ComponentFormat
from mdrt.graph import Graph
from mdrt.interpreter import Interpreter
from mdrt.quantise import (
    column_sums,
    input_parameters,
    layers,
    quantise_columns,
    quantise_dynamic,
    quantise_static,
    store_component,
)

RANGE = (-3.0, 4.0)


def test_columns_have_a_scale_each():
    weight = np.array([[127.0, -63.5, 0.5], [0.0, 0.0, 0.0], [-1.0, 0.25, 1.0]], np.float32)
    integers, scale = quantise_columns(weight)
    assert integers.dtype == scale.dtype == np.float32
    np.testing.assert_array_equal(scale, np.float32([1, 1, np.float32(1) / 127]))
    np.testing.assert_array_equal(integers, [[127, -64, 0], [0, 0, 0], [-127, 32, 127]])  # -63.5 and 0.5 go to even
    np.testing.assert_array_equal(column_sums(integers), np.int32([63, 0, 32]))


def test_columns_of_a_convolution():
    weight = np.random.default_rng(0).standard_normal((5, 7, 3, 3)).astype(np.float32)
    integers, scale = quantise_columns(weight)
    assert integers.shape == weight.shape and scale.shape == (5,)
    assert np.abs(integers).max(axis=(1, 2, 3)).tolist() == [127] * 5
    assert np.abs(integers * scale[:, None, None, None] - weight).max() <= 0.51 * scale.max()
    np.testing.assert_array_equal(column_sums(integers), integers.astype(np.int64).sum(axis=(1, 2, 3)))


@pytest.mark.parametrize("tiny", [0.0, 2.0**-149, 126 * 2.0**-126])
def test_what_is_too_small_counts_as_zero(tiny):
    """Its scale would have no finite inverse."""
    integers, scale = quantise_columns(np.float32([[tiny, -tiny]]))
    assert scale == [1] and not integers.any()
    integers, scale = quantise_dynamic(np.float32([[tiny, -tiny]]))
    assert scale == [[1]] and not integers.any()
    assert input_parameters((-tiny, 0)) == (1, -128)


def test_largest_numbers():
    largest = np.finfo(np.float32).max
    integers, scale = quantise_columns(np.float32([[largest, -largest]]))
    assert integers.tolist() == [[127, -127]] and np.isfinite(scale).all()
    with pytest.raises(mdrt.InvalidArgumentError, match="not finite"):
        quantise_columns(np.float32([[np.inf]]))
    with pytest.raises(mdrt.InvalidArgumentError, match="not finite"):
        quantise_columns(np.float32([[np.nan]]))


@pytest.mark.parametrize(
    ("given", "zero_point", "scale"),
    [
        ((-1, 1), -1, 2 / 255),
        ((0.5, 2.55), -128, 0.01),
        ((-2.55, -1), 127, 0.01),
        ((-0.28, 5), -114, 5.28 / 255),
        ((0, 0), -128, 1),
    ],
)
def test_input_parameters_contain_zero(given, zero_point, scale):
    found, zero = input_parameters(given)
    assert zero == zero_point and found.dtype == np.float32 and found == pytest.approx(scale, rel=1e-6)
    ends = quantise_static(np.float32([min(given[0], 0), 0, max(given[1], 0)]), found, zero)
    assert ends[1] == zero and ends[0] >= -128 and ends[2] <= 127
    if given != (0, 0):
        assert ends[2] - ends[0] >= 254


@pytest.mark.parametrize("wrong", [(1, 0), (np.nan, 1), (0, np.inf), (-3e38, 3e38)])
def test_input_range_that_is_none(wrong):
    with pytest.raises(mdrt.InvalidArgumentError, match="input range"):
        input_parameters(wrong)


def test_inputs_are_clamped_and_rounded_to_even():
    x = np.float32([-1000, -1.5, -0.5, 0.5, 1.5, 2.5, 1000])
    assert quantise_static(x, np.float32(1), 3).tolist() == [-128, 1, 3, 3, 5, 5, 127]
    integers, scale = quantise_dynamic(np.float32([[0, 0], [254, -1], [127, 0.5]]))
    assert scale.tolist() == [[1], [2], [1]] and integers.tolist() == [[0, 0], [127, 0], [127, 0]]


def make_graph():
    """A 3x3 convolution without bias, a 1x1 one, two linear layers that share a weight, a norm between."""
    graph = Graph()
    graph.input("x", ["batch", "height", "width", 5])
    conv = {"in_channels": 5, "out_channels": 20, "stride": [1, 1]}
    graph.add("conv2d", ["x", "wide.weight"], name="wide", **conv, kernel_size=[3, 3], pads=[1] * 4)
    graph.add("group_norm", ["wide", "norm.weight", "norm.bias"], name="norm", num_groups=4, num_channels=20, eps=1e-5)
    sizes = {"in_channels": 20, "out_channels": 8, "kernel_size": [1, 1], "stride": [1, 1], "pads": [0] * 4}
    graph.add("conv2d", ["norm", "narrow.weight", "narrow.bias"], name="narrow", **sizes)
    graph.add("linear", ["narrow", "fc.weight", "fc.bias"], name="first", in_features=8, out_features=8)
    graph.add("linear", ["first", "fc.weight", "fc.bias"], name="second", in_features=8, out_features=8)
    graph.output("second", "y")
    rng = np.random.default_rng(4)
    weights = {w.name: rng.standard_normal(w.shape).astype(np.float32) for w in graph.weights.values()}
    return graph, weights


def test_layers():
    found = layers(make_graph()[0])
    assert list(found) == ["wide", "narrow", "fc"]
    assert [layer.needs_input_range for layer in found.values()] == [True, False, False]
    assert [node.name for node in found["fc"].nodes] == ["first", "second"] and found["fc"].weight == "fc.weight"
    assert not any(layer.is_quantised for layer in found.values())


def test_formats_by_layer():
    graph, weights = make_graph()
    chosen = ComponentFormat("int8", {"narrow": "int8_weights"}, {"wide": RANGE, "narrow": RANGE})
    stored = store_component(graph, weights, chosen)
    stored.graph.validate()
    assert stored.formats == {
        "wide.weight": "int8",
        "wide.zero_bias": "fp32",
        "wide.weight_scale": "fp32",
        "wide.weight_sum": "int32",
        "wide.input_scale": "fp32",
        "wide.input_zero_point": "int32",
        "norm.weight": "fp32",
        "norm.bias": "fp32",
        "narrow.weight": "int8",
        "narrow.bias": "fp32",
        "narrow.weight_scale": "fp32",
        "fc.weight": "int8",
        "fc.bias": "fp32",
        "fc.weight_scale": "fp32",
        "fc.weight_sum": "int32",
    }
    assert list(stored.weights) != [] and set(stored.weights) == set(stored.graph.weights)
    assert len(stored.weights) == len(stored.graph.weights)
    integers, scale = quantise_columns(weights["wide.weight"])
    np.testing.assert_array_equal(stored.weights["wide.weight"], integers)
    np.testing.assert_array_equal(stored.weights["wide.weight_scale"], scale)
    np.testing.assert_array_equal(stored.weights["wide.weight_sum"], column_sums(integers))
    found = [np.asarray(stored.weights[f"wide.{name}"]).tolist() for name in ("input_scale", "input_zero_point")]
    assert found == [[value] for value in input_parameters(RANGE)]
    found = layers(stored.graph).values()
    assert all(layer.is_quantised for layer in found)
    assert [layer.name for layer in found if layer.multiplies_integers] == ["wide", "fc"]
    assert [layer.name for layer in found if layer.has_only_int8_weights] == ["narrow"]


@pytest.mark.parametrize(
    ("format", "says"),
    [
        ("int4", "int4"),
        (ComponentFormat("int8", {"wide": "int4"}), "int4"),
        (ComponentFormat("fp16", {"tall": "int8"}), "no layer 'tall'"),
        (ComponentFormat("fp16", {}, {"norm": RANGE}), "no layer 'norm'"),
        ("int8", "layer wide .* range"),
        (ComponentFormat("int8", {}, {"wide": (1, 0)}), "layer wide: .*input range"),
    ],
)
def test_impossible_formats(format, says):
    graph, weights = make_graph()
    with pytest.raises(mdrt.InvalidArgumentError, match=says):
        store_component(graph, weights, format)
    with pytest.raises(mdrt.InvalidArgumentError, match=f"component unet: .*{says}"):
        write_bundle(None, {"unet": graph}, {"unet": weights}, formats={"unet": format})


def test_weight_that_is_not_finite_is_named():
    graph, weights = make_graph()
    weights["fc.weight"][0, 0] = np.inf
    with pytest.raises(mdrt.InvalidArgumentError, match=r"unet/fc\.weight.*not finite"):
        write_bundle(None, {"unet": graph}, {"unet": weights}, formats=ComponentFormat("int8", {"wide": "fp32"}))


def test_too_many_products():
    """65536 products fit into int32 whatever they are."""
    for size, fits in ((65536, True), (65537, False)):
        graph = Graph()
        graph.input("x", ["batch", size])
        inputs = ["x", "w", "b", "weight_scale", "weight_sum"]
        graph.output(graph.add("linear", inputs, name="y", in_features=size, out_features=1))
        if fits:
            graph.validate()
            continue
        with pytest.raises(mdrt.InvalidArgumentError, match="65552 products"):
            graph.validate()
        plain = Graph()
        plain.input("x", ["batch", size])
        plain.output(plain.add("linear", ["x", "w"], name="y", in_features=size, out_features=1))
        with pytest.raises(mdrt.InvalidArgumentError, match=r"component unet: .*65552 products"):
            write_bundle(None, {"unet": plain}, {"unet": {"w": np.zeros((1, size), np.float32)}}, formats="int8")


@pytest.mark.parametrize(("narrow", "minor"), [("fp16", 1), ("int8_weights", 2)])
def test_stored_graph_computes_the_same(narrow, minor):
    """What the file holds is what the interpreter computes with."""
    graph, weights = make_graph()
    weights["fc.weight"] *= np.float32(0.3)
    chosen = ComponentFormat("int8", {"narrow": narrow}, {"wide": RANGE, "fc": (-25, 25)})
    feeds = {"x": np.random.default_rng(5).standard_normal((2, 6, 7, 5)).astype(np.float32)}
    expected = Interpreter(graph, weights, backend="reference", format=chosen).run(feeds)["y"]

    model = _core.Model.from_buffer(write_bundle(None, {"unet": graph}, {"unet": weights}, formats=chosen))
    model.verify()
    document = json.loads(model.metadata())
    assert document["format"] == [1, minor]
    loaded = Graph.from_dict(document["components"]["unet"])
    stored = {name.removeprefix("unet/"): (dtype, array) for name, dtype, _, array in model.tensors()}
    unpacked = {name: _core.unpack(weight.kind, *stored[name], weight.shape) for name, weight in loaded.weights.items()}
    found = Interpreter(loaded, unpacked, backend="reference").run(feeds)["y"]
    np.testing.assert_array_equal(found, expected)

    again = write_bundle(None, {"unet": loaded}, {"unet": unpacked}, formats="fp16")
    tensors = {name: (dtype, array) for name, dtype, _, array in _core.Model.from_buffer(again).tensors()}
    for name, (dtype, array) in stored.items():
        if name != "header_crc32c":
            assert tensors[f"unet/{name}"][0] == dtype
            np.testing.assert_array_equal(tensors[f"unet/{name}"][1], array)

    plain = Interpreter(graph, weights, backend="reference").run(feeds)["y"]
    assert 0 < np.abs(found - plain).max() < 0.05 * np.abs(plain).max()


def test_input_ranges_are_given_once():
    graph, weights = make_graph()
    feeds = {"x": np.ones((1, 3, 3, 5), np.float32)}
    short = Interpreter(graph, weights, backend="reference", format="int8", input_ranges={"wide": RANGE})
    long = Interpreter(graph, weights, backend="reference", format=ComponentFormat("int8", {}, {"wide": RANGE}))
    np.testing.assert_array_equal(short.run(feeds)["y"], long.run(feeds)["y"])
    with pytest.raises(mdrt.InvalidArgumentError, match="input_ranges"):
        Interpreter(graph, weights, format=ComponentFormat("int8"), input_ranges={"wide": RANGE})


def integer_product(x, weight, bias, scale, zero_point):
    """By the definition, one output at a time, with Python's integers; `scale` is one number, or one for each row."""
    q_w, s_w = quantise_columns(weight)
    out = np.empty((*x.shape[:-1], len(weight)), np.float32)
    for index in np.ndindex(*x.shape[:-1]):
        s = scale if zero_point is not None else max(np.abs(x[index]).max() / np.float32(127), np.float32(0))
        s = np.float32(s) if s > 0 else np.float32(1)
        z = 0 if zero_point is None else zero_point
        q = [max(-128, min(127, round(float(value * (np.float32(1) / s))) + z)) for value in x[index]]
        for n in range(len(weight)):
            total = sum((a - z) * int(b) for a, b in zip(q, q_w[n], strict=True))
            out[(*index, n)] = np.float32(total) * (s * s_w[n]) + bias[n]
    return out


@pytest.mark.parametrize("input_range", [None, RANGE, (-0.28, 2.0)])
def test_linear_by_the_definition(input_range):
    rng = np.random.default_rng(6)
    x, weight, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, 19), (17, 19), (17,)))
    x[0, 2] = 0
    scale, zero_point = (None, None) if input_range is None else input_parameters(input_range)
    found = kernels.linear(x, weight, bias, format="int8", input_range=input_range, backend="reference")
    np.testing.assert_array_equal(found, integer_product(x, weight, bias, scale, zero_point))


def test_convolution_is_padded_with_the_zero_point():
    """A 3x3 convolution is a product over nine pixels, those outside being zero exactly."""
    rng = np.random.default_rng(7)
    x, weight = rng.standard_normal((1, 4, 5, 3)).astype(np.float32), rng.standard_normal((6, 3, 3, 3))
    bias = rng.standard_normal(6).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).reshape(1, 4, 5, 27)
    expected = integer_product(windows, weight.reshape(6, 27).astype(np.float32), bias, *input_parameters(RANGE))
    options = {"format": "int8", "input_range": RANGE, "backend": "reference"}
    found = kernels.conv2d(x, weight, bias, pads=1, **options)
    np.testing.assert_array_equal(found, expected)
    strided = kernels.conv2d(x, weight, bias, stride=2, pads=1, **options)
    np.testing.assert_array_equal(strided, expected[:, ::2, ::2])
    without_bias = kernels.conv2d(x, weight, pads=1, **options)
    np.testing.assert_allclose(without_bias + bias, expected, rtol=0, atol=1e-5)


def test_pointwise_convolution_is_a_linear_layer():
    rng = np.random.default_rng(8)
    x, weight = rng.standard_normal((2, 3, 4, 7)).astype(np.float32), rng.standard_normal((5, 7, 1, 1))
    bias = rng.standard_normal(5)
    for input_range in (None, RANGE):
        options = {"format": "int8", "input_range": input_range, "backend": "reference"}
        found = kernels.conv2d(x, weight, bias, **options)
        np.testing.assert_array_equal(found, kernels.linear(x, weight[:, :, 0, 0], bias, **options))
    with pytest.raises(mdrt.InvalidArgumentError, match="range"):
        kernels.conv2d(x, weight, bias, pads=1, format="int8")


def test_embedding_by_the_definition():
    rng = np.random.default_rng(9)
    ids = np.array([[0, 6, 2], [3, 3, 1]])
    table, positions = rng.standard_normal((7, 70)).astype(np.float32), rng.standard_normal((4, 70)).astype(np.float32)
    table[3] = 0
    (q, s), (q_p, s_p) = quantise_columns(table), quantise_columns(positions)
    expected = (q * s[:, None])[ids] + (q_p * s_p[:, None])[:3]
    found = kernels.embedding(ids, table, positions, format="int8", backend="reference")
    np.testing.assert_array_equal(found, expected)
