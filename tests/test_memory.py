"""Memory: layers in strips give the same bytes in less of it, and finished stages give back their weights' pages."""

import os
import re

import numpy as np
import pytest

import mdrt
from mdrt import _core, models
from mdrt.bundle import write_bundle
from mdrt.errors import MemoryLimitError
from mdrt.formats import ComponentFormat
from mdrt.graph import Graph
from mdrt.quantise import layers

DONE = 3  # the stage after the last
RANGE = (-3.0, 4.0)
SIZES = [(96, 80), (149, 41), (600, 5)]  # around the blocks of a task, one of them narrow


def conv(graph, x, name, inputs, outputs, kernel=3, stride=1, pad=1):
    sizes = {"in_channels": inputs, "out_channels": outputs, "kernel_size": [kernel] * 2}
    names = [x, f"{name}.weight", f"{name}.bias"]
    return graph.add("conv2d", names, name=name, **sizes, stride=[stride] * 2, pads=[pad] * 4)


def norm(graph, x, name, channels):
    sizes = {"num_groups": 4, "num_channels": channels, "eps": 1e-5}
    graph.add("group_norm", [x, f"{name}.weight", f"{name}.bias"], name=name, **sizes)
    return graph.add("silu", [name], name=f"{name}.act")


def network():
    """What strips may meet: norms, residuals, a time embedding, concat, strides, upsampling, depthwise, tokens."""
    graph = Graph()
    graph.input("x", ["batch", "height", "width", 24])
    graph.input("time", ["batch", 20])
    first = conv(graph, "x", "first", 24, 40)
    time = graph.add("linear", ["time", "time.weight", "time.bias"], name="time_proj", in_features=20, out_features=40)
    h = conv(graph, norm(graph, first, "norm1", 40), "conv1", 40, 40)
    h = graph.add("add", [h, time], name="add_time")
    h = conv(graph, norm(graph, h, "norm2", 40), "conv2", 40, 40)
    resnet = graph.add("add", [first, h], name="resnet")
    itself = graph.add("add", [resnet, conv(graph, resnet, "conv3", 40, 40)], name="itself")
    wide = graph.add("concat", [itself, "x"], name="wide")
    narrow = conv(graph, wide, "shortcut", 64, 32, kernel=1, pad=0)
    half = conv(graph, narrow, "down", 32, 48, stride=2)
    up = graph.add("upsample", [half], name="up", scale_factor=2)
    up = conv(graph, up, "up_conv", 48, 32)
    depthwise = {"channels": 32, "kernel_size": [3, 3], "stride": [1, 1], "pads": [1] * 4}
    separable = graph.add("depthwise_conv2d", [up, "dw.weight", "dw.bias"], name="dw", **depthwise)
    out = conv(graph, separable, "pointwise", 32, 16, kernel=1, pad=0)
    graph.output(out, "y")
    return graph


def tokens():
    """Linear layers with a scale for each token."""
    graph = Graph()
    graph.input("x", ["batch", "length", 24])
    graph.add("linear", ["x", "wide.weight", "wide.bias"], name="wide", in_features=24, out_features=96)
    graph.add("linear", ["wide", "more.weight", "more.bias"], name="more", in_features=96, out_features=96)
    graph.add("add", ["wide", "more"], name="sum")
    graph.add("linear", ["sum", "narrow.weight", "narrow.bias"], name="narrow", in_features=96, out_features=8)
    graph.output("narrow", "y")
    return graph


def bundle(graph, input_range):
    generator = np.random.default_rng(5)
    weights = {w.name: generator.standard_normal(w.shape).astype(np.float32) for w in graph.weights.values()}
    ranges = {} if input_range is None else dict.fromkeys(layers(graph), input_range)
    return write_bundle(None, {"net": graph}, {"net": weights}, formats=ComponentFormat("int8", {}, ranges))


def run(buffer, feeds, max_memory, threads):
    """The output and the plan's description."""
    model = _core.Model.from_buffer(buffer, threads=threads, max_memory=max_memory)
    return model.run("net", feeds, ["y"])["y"], model.describe_plan("net", feeds)


def check_strips(graph, input_range, feeds):
    buffer = bundle(graph, input_range)
    whole, plan = run(buffer, feeds, 2**40, 1)
    assert "strips" not in plan
    needs = []
    for threads in (1, 2, 5):
        with pytest.raises(MemoryLimitError, match=r"limit is 0\.0 MB") as refused:
            run(buffer, feeds, 1, threads)
        needs.append(float(re.search(r"needs ([\d.]+) MB", str(refused.value))[1]))
        result, plan = run(buffer, feeds, round(needs[-1] * 1e6) + 60_000, threads)
        assert "strips" in plan
        np.testing.assert_array_equal(result.view(np.uint32), whole.view(np.uint32))
    with pytest.raises(MemoryLimitError):
        run(buffer, feeds, round(needs[0] * 1e6) - 60_000, 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
def test_strips_of_a_network(size, batch):
    generator = np.random.default_rng(6)
    x = generator.standard_normal((batch, *size, 24)).astype(np.float32)
    feeds = {"x": x, "time": generator.standard_normal((batch, 20)).astype(np.float32)}
    check_strips(network(), RANGE, feeds)


@pytest.mark.parametrize("input_range", [None, RANGE], ids=["a scale per token", "one scale"])
def test_strips_of_tokens(input_range):
    x = np.random.default_rng(7).standard_normal((2, 2000, 24)).astype(np.float32)
    check_strips(tokens(), input_range, {"x": x})


def test_large_maps_are_cut_without_being_asked():
    """Of an upright picture its upper half is the same as by itself, but for the rows that see the lower half."""
    graph = Graph()
    graph.input("x", ["batch", "height", "width", 8])
    first = conv(graph, "x", "first", 8, 64)
    second = conv(graph, conv(graph, first, "inner", 64, 64), "outer", 64, 64)
    graph.output(conv(graph, graph.add("add", [first, second], name="sum"), "last", 64, 8), "y")
    x = np.random.default_rng(8).standard_normal((1, 384, 192, 8)).astype(np.float32)
    result, plan = run(bundle(graph, RANGE), {"x": x}, 2**40, 2)
    assert "strips" in plan
    part, plan = run(bundle(graph, RANGE), {"x": x[:, :192].copy()}, 2**40, 2)
    assert "strips" not in plan
    np.testing.assert_array_equal(result[:, :188].view(np.uint32), part[:, :188].view(np.uint32))


# Weights


def resident_bytes(path):
    """Of the mappings of a file in this process; None: the system does not say."""
    total, inside, seen = 0, False, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
                inside = line.rstrip().endswith(os.path.realpath(path))
                seen |= inside
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total if seen else None


def slices(job):
    """Advances to the end, slice by slice."""
    while job.advance()[0] != DONE:
        yield


def test_finished_stages_give_their_weights_back():
    path = models.builtin_path()
    size = os.path.getsize(path)
    model = _core.Model(path)
    if resident_bytes(path) is None:
        pytest.skip("this system does not list the pages of a mapping")
    job = _core.Job(model, "a tiger", seed=1, num_inference_steps=8)
    resident = [resident_bytes(path) for _ in slices(job)]
    first = job.pixels()
    # A kernel may map all of a large folio for one of its pages: the largest says only that pages were counted.
    assert max(resident) > size / 3
    assert resident[-1] < size / 4, "while the decoder runs, the UNet's pages are gone"
    assert resident_bytes(path) < size / 8
    again = _core.Job(model, "a tiger", seed=1, num_inference_steps=8)
    for _ in slices(again):
        pass
    np.testing.assert_array_equal(again.pixels(), first)


def test_a_bundle_in_memory_keeps_its_bytes():
    stored = np.fromfile(models.builtin_path(), np.uint8)
    room = np.zeros(stored.size + 4096, np.uint8)
    start = -room.ctypes.data % 4096
    buffer = room[start : start + stored.size]
    buffer[:] = stored
    job = _core.Job(_core.Model.from_buffer(buffer), "a tiger", seed=1)
    for _ in slices(job):
        pass
    np.testing.assert_array_equal(buffer, stored)
    with mdrt.Pipeline() as pipe:
        np.testing.assert_array_equal(job.pixels(), np.asarray(pipe("a tiger", seed=1)))
