"""3x3 convolutions by Winograd on every instruction set, against the reference."""

import random

import numpy as np
import pytest

from mdrt import _core
from mdrt.bundle import write_bundle
from mdrt.formats import ComponentFormat
from mdrt.graph import Graph
from mdrt.interpreter import Interpreter
from mdrt.layers import build
from mdrt.quantise import layers

ISAS = [isa["name"] for isa in _core.build_info()["isas"] if isa["usable"]]
WITH, WITHOUT = 1e-4, 1e-5  # of the largest output


def kernels(experiment):
    """Names of the kernels that the plan of an experiment calls."""
    buffer = write_bundle(None, {"layer": experiment.graph}, {"layer": experiment.weights})
    return {step[0].split()[0] for step in _core.Model.from_buffer(buffer).profile("layer", experiment.feeds, 1)}


def case(seed):
    """Graph, weights and feeds: a convolution of a size around those of tiles, with what the planner fuses into it."""
    draw, generator = random.Random(seed), np.random.default_rng(seed)
    batch, h, w = draw.randint(1, 2), draw.randint(1, 37), draw.randint(1, 37)
    sources = [draw.choice([1, 15, 16, 17, 48, 80]) for _ in range(draw.randint(1, 2))]
    channels, columns = sum(sources), draw.choice([1, 16, 17, 33, 64, 100])
    pads = [draw.randint(1, 2) for _ in range(4)] if min(h, w) < 3 else [draw.randint(0, 2) for _ in range(4)]
    graph, weights = Graph(), {}
    feeds = {f"x{i}": generator.standard_normal((batch, h, w, c), dtype=np.float32) for i, c in enumerate(sources)}
    names = [graph.input(name, [batch, h, w, array.shape[3]]) for name, array in feeds.items()]
    value = graph.add("concat", names, name="concat") if len(names) == 2 else names[0]
    if draw.random() < 0.5:
        weights["scale"], weights["shift"] = (generator.standard_normal(channels).astype(np.float32) for _ in range(2))
        value = graph.add(
            "group_norm", [value, "scale", "shift"], name="norm", num_groups=1, num_channels=channels, eps=1e-5
        )
        value = graph.add("silu", [value], name="silu")
    if draw.random() < 0.3:
        value = graph.add("upsample", [value], name="up", scale_factor=2)
    weights["w"] = (generator.standard_normal((columns, channels, 3, 3)) / np.sqrt(9 * channels)).astype(np.float32)
    weights["b"] = generator.standard_normal(columns).astype(np.float32)
    sizes = {"in_channels": channels, "out_channels": columns, "kernel_size": [3, 3], "stride": [1, 1], "pads": pads}
    value = graph.add("conv2d", [value, "w", "b"], name="conv", **sizes)
    feeds["t"] = generator.standard_normal((batch, columns), dtype=np.float32)
    value = graph.add("add", [value, graph.input("t", [batch, columns])], name="time")
    graph.output(value, "y")
    return graph, weights, feeds


@pytest.fixture(scope="module", params=range(24))
def expected(request):
    graph, weights, feeds = case(request.param)
    return graph, weights, feeds, Interpreter(graph, weights, "reference").run(feeds)["y"]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("setting", ["0", "1"])
def test_against_reference(expected, setting, isa, monkeypatch):
    graph, weights, feeds, y = expected
    monkeypatch.setenv("MDRT_WINOGRAD", setting)
    result = Interpreter(graph, weights, threads=2, isa=isa).run(feeds)["y"]
    assert result.shape == y.shape
    assert np.abs(result - y).max() <= (WITH if setting == "1" else WITHOUT) * np.abs(y).max()


def test_threads_and_batch_change_no_byte(expected, monkeypatch):
    graph, weights, feeds, _ = expected
    monkeypatch.setenv("MDRT_WINOGRAD", "1")
    one, three = (Interpreter(graph, weights, threads=n).run(feeds)["y"] for n in (1, 3))
    assert one.tobytes() == three.tobytes()


@pytest.mark.parametrize("format", ["fp16", "int8_weights"])
@pytest.mark.parametrize("isa", ISAS)
def test_weights_are_widened(isa, format, monkeypatch):
    """Before they are transformed, so only inputs and output are rounded."""
    graph, weights, feeds = case(2)
    monkeypatch.setenv("MDRT_WINOGRAD", "1")
    y = Interpreter(graph, weights, "reference", format=format).run(feeds)["y"]
    result = Interpreter(graph, weights, isa=isa, format=format).run(feeds)["y"]
    assert np.abs(result - y).max() <= 2e-3 * np.abs(y).max()


@pytest.mark.parametrize(
    ("setting", "layer", "kernel"),
    [
        (None, "32x32x64 | group_norm 32 | silu | conv2d 3x3 64 | add", "winograd"),
        (None, "32x32x64+32 | group_norm 32 | silu | conv2d 3x3 64 | add image", "winograd"),
        (None, "16x16x64 | upsample 2 | conv2d 3x3 64", "winograd"),
        (None, "32x32x64 | conv2d 3x3 16", "gemm"),
        (None, "32x32x16 | conv2d 3x3 64", "gemm"),
        (None, "8x8x64 | conv2d 3x3 64", "gemm"),
        ("0", "32x32x64 | conv2d 3x3 64", "gemm"),
        ("1", "8x8x16 | conv2d 3x3 16", "winograd"),
        ("1", "32x32x64 | conv2d 3x3/2 64", "gemm"),
        ("1", "32x32x64 | conv2d 1x1 64", "gemm"),
        ("1", "32x32x64 | depthwise_conv2d 3x3 | conv2d 1x1 64", "gemm"),
    ],
)
def test_which_layers_take_it(setting, layer, kernel, monkeypatch):
    if setting is None:
        monkeypatch.delenv("MDRT_WINOGRAD", raising=False)
    else:
        monkeypatch.setenv("MDRT_WINOGRAD", setting)
    assert kernels(build(layer)) & {"gemm", "winograd"} == {kernel}


def int8_kernels(experiment, isa):
    formats = {"layer": ComponentFormat("int8", input_ranges=dict.fromkeys(layers(experiment.graph), (-1.0, 2.0)))}
    buffer = write_bundle(None, {"layer": experiment.graph}, {"layer": experiment.weights}, formats=formats)
    model = _core.Model.from_buffer(buffer)
    model.set_plan_options(isa)
    return {step[0].split()[0] for step in model.profile("layer", experiment.feeds, 1)}


@pytest.mark.parametrize(
    ("setting", "layer", "pays", "kernel"),
    [
        (None, "32x32x64 | conv2d 3x3 64", True, "winograd_int8"),
        (None, "16x16x64 | upsample 2 | conv2d 3x3 64", True, "winograd_int8"),
        (None, "32x32x16 | conv2d 3x3 64", True, "gemm_int8"),
        (None, "32x32x64 | conv2d 3x3 16", True, "gemm_int8"),
        (None, "32x32x64 | conv2d 3x3 64", False, "gemm_int8"),
        ("0", "32x32x64 | conv2d 3x3 64", True, "gemm_int8"),
        ("1", "8x8x16 | conv2d 3x3 16", False, "winograd_int8"),
        ("1", "32x32x64 | conv2d 3x3/2 64", True, "gemm_int8"),
        ("1", "8x8x1808 | conv2d 3x3 16", True, "gemm_int8"),
    ],
)
def test_which_int8_layers_take_it(setting, layer, pays, kernel, monkeypatch):
    """It pays where products of 16 bits are as fast as those of bytes."""
    isas = [isa for isa in ISAS if (isa in {"avx2", "avx512"}) == pays]
    if setting is None:
        monkeypatch.delenv("MDRT_WINOGRAD", raising=False)
    else:
        monkeypatch.setenv("MDRT_WINOGRAD", setting)
    for isa in isas:
        assert int8_kernels(build(layer), isa) & {"gemm_int8", "winograd_int8"} == {kernel}, isa


@pytest.mark.parametrize("isa", ISAS)
def test_int8_gives_the_same_bytes(isa, monkeypatch):
    for seed in range(24):
        graph, weights, feeds = case(seed)
        formats = ComponentFormat("int8", input_ranges=dict.fromkeys(layers(graph), (-2.5, 3.0)))
        results = []
        for setting in "01":
            monkeypatch.setenv("MDRT_WINOGRAD", setting)
            results.append(Interpreter(graph, weights, isa=isa, format=formats).run(feeds)["y"])
        np.testing.assert_array_equal(*results)
