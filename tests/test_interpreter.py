"""The interpreter's promises that hold for both backends: what it refuses, and what it returns."""

import numpy as np
import pytest

import mdrt
from mdrt.graph import Graph
from mdrt.interpreter import Interpreter

BACKENDS = ["native", "reference"]


def linear_graph():
    graph = Graph()
    x = graph.input("x", ["batch", "tokens", 6])
    y = graph.input("y", ["batch", "tokens", 4])
    x = graph.add("linear", [x, "w"], name="product", in_features=6, out_features=4)
    graph.output(graph.add("add", [x, y], name="sum"), "out")
    return graph, {"w": np.arange(24, dtype=np.float32).reshape(4, 6)}


def feeds(**changes):
    arrays = {"x": np.ones((2, 3, 6), np.float32), "y": np.zeros((2, 3, 4), np.float32)}
    return {name: array for name, array in {**arrays, **changes}.items() if array is not None}


@pytest.mark.parametrize("backend", BACKENDS)
def test_results(backend):
    interpreter = Interpreter(*linear_graph(), backend=backend)
    results = interpreter.run(feeds(x=np.ones((2, 3, 6)), y=np.ones((2, 3, 4), np.int64)), ["product", "out", "sum"])
    assert list(results) == ["product", "out", "sum"]
    assert {array.dtype for array in results.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(results["product"][1, 2], [15, 51, 87, 123])
    np.testing.assert_array_equal(results["out"], results["product"] + 1)
    np.testing.assert_array_equal(results["sum"], results["out"])
    assert list(interpreter.run(feeds())) == ["out"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("changes", "outputs", "message"),
    [
        ({"x": None}, None, "x"),
        ({"z": np.ones(1)}, None, "z"),
        ({"x": np.ones((2, 3, 5))}, None, "x"),
        ({"x": np.ones((2, 3))}, None, "x"),
        ({"y": np.ones((2, 4, 4))}, None, "y"),
        ({"y": np.ones((0, 3, 4))}, None, "y"),
        ({}, ["nothing"], "nothing"),
        ({}, ["w"], "w"),
    ],
)
def test_bad_feeds(backend, changes, outputs, message):
    interpreter = Interpreter(*linear_graph(), backend=backend)
    with pytest.raises(mdrt.InvalidArgumentError, match=message):
        interpreter.run(feeds(**changes), outputs)
    assert interpreter.run(feeds())["out"].shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda w: w.pop("w"), {}, "weight w is missing"),
        (lambda w: w.update(v=np.ones(1)), {}, "weight v is not used"),
        (lambda w: w.update(w=np.ones((6, 4))), {}, r"weight w: the shape is \[6, 4\], not \[4, 6\]"),
        (lambda w: None, {"backend": "gpu"}, "backend 'gpu'"),
        (lambda w: None, {"format": "int3"}, "format 'int3'"),
        (lambda w: None, {"isa": "sse9"}, "sse9"),
        (lambda w: w.update(w=np.full((4, 6), 1e6)), {"format": "fp16"}, "fp16"),
    ],
)
def test_bad_arguments(change, options, message):
    graph, weights = linear_graph()
    change(weights)
    with pytest.raises(mdrt.InvalidArgumentError, match=message):
        Interpreter(graph, weights, **options).run(feeds())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("ids", "length"), [([-1], 1), ([5], 1), ([0] * 4, 4)])
def test_ids_and_positions_out_of_range(backend, ids, length):
    graph = Graph()
    graph.input("input_ids", ["batch", "length"], "int32")
    sizes = {"num_embeddings": 5, "embedding_dim": 8, "max_position_embeddings": 3}
    graph.output(graph.add("embedding", ["input_ids", "w", "p"], name="y", **sizes))
    weights = {"w": np.ones((5, 8), np.float32), "p": np.ones((3, 8), np.float32)}
    with pytest.raises(mdrt.InvalidArgumentError):
        Interpreter(graph, weights, backend=backend).run({"input_ids": np.array([ids], np.int32)})


@pytest.mark.parametrize("backend", BACKENDS)
def test_shapes_that_only_meet_inside(backend):
    graph = Graph()
    a, b = graph.input("a", ["batch", "height", "width", 4]), graph.input("b", ["batch", "rows", "columns", 4])
    graph.output(graph.add("add", [a, b], name="sum"))
    interpreter = Interpreter(graph, {}, backend=backend)
    with pytest.raises(mdrt.InvalidArgumentError, match="sum"):
        interpreter.run({"a": np.ones((1, 4, 4, 4)), "b": np.ones((1, 3, 4, 4))})
