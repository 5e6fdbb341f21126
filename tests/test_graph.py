"""Graphs: building, documents, and that every mistake is refused with a sentence naming it."""

import copy
import json

import pytest

import mdrt
from mdrt.graph import Graph, op_table
from mdrt.ops import REFERENCES


def small_graph():
    graph = Graph()
    x = graph.input("x", ["batch", "height", "width", 8])
    y = graph.add("group_norm", [x, "norm.weight", "norm.bias"], name="norm", num_groups=4, num_channels=8, eps=1e-5)
    y = graph.add("silu", [y], name="act")
    weights = ["conv.weight", "conv.bias"]
    y = graph.add(
        "conv2d",
        [y, *weights],
        name="conv",
        in_channels=8,
        out_channels=12,
        kernel_size=[3, 3],
        stride=[1, 1],
        pads=[1, 1, 1, 1],
    )
    graph.output(y, "y")
    return graph


def test_document_of_a_small_graph():
    document = small_graph().to_dict()
    assert document["inputs"] == [{"name": "x", "dtype": "fp32", "shape": ["batch", "height", "width", 8]}]
    assert document["weights"] == ["norm.weight", "norm.bias", "conv.weight", "conv.bias"]
    assert [node["inputs"] for node in document["nodes"]] == [[0, 1, 2], [5], [6, 3, 4]]
    assert document["nodes"][0]["attributes"] == {"num_groups": 4, "num_channels": 8, "eps": 1e-5}
    assert document["outputs"] == [{"name": "y", "value": 7}]


def test_document_and_back():
    graph = small_graph()
    graph.validate()
    document = json.loads(json.dumps(graph.to_dict()))
    again = Graph.from_dict(document)
    assert again.to_dict() == document
    assert again.weights == graph.weights
    assert str(again) == str(graph)
    again.validate()


def test_weights_have_the_shapes_that_attributes_demand():
    weights = small_graph().weights
    assert (weights["conv.weight"].kind, weights["conv.weight"].shape) == ("panel", (12, 8, 3, 3))
    assert (weights["norm.bias"].kind, weights["norm.bias"].shape) == ("vector", (8,))


def test_a_weight_may_be_used_twice_in_one_shape_only():
    graph = Graph()
    x = graph.input("x", ["batch", 8])
    x = graph.add("linear", [x, "w"], name="a", in_features=8, out_features=8)
    x = graph.add("linear", [x, "w"], name="b", in_features=8, out_features=8)
    assert list(graph.weights) == ["w"]
    with pytest.raises(mdrt.InvalidArgumentError, match="node c: weight w is a panel"):
        graph.add("linear", [x, "w"], name="c", in_features=8, out_features=4)


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("convolution", ["x"], {}, "there is no op 'convolution'"),
        ("silu", ["y"], {}, "'y', which is no earlier value"),
        ("silu", ["x", "x"], {}, "takes 1 inputs, not 2"),
        ("concat", ["x"], {}, "takes 2 or more inputs, not 1"),
        ("silu", ["x"], {"alpha": 1}, "attribute 'alpha' is unknown"),
        ("upsample", ["x"], {}, "attribute 'scale_factor' is missing"),
        ("gated_unit", ["x"], {"act_fn": "relu"}, "act_fn is 'relu', not one of silu, gelu"),
        ("upsample", ["x"], {"scale_factor": 2.5}, "scale_factor is 2.5, not an integer"),
        ("upsample", ["x"], {"scale_factor": True}, "scale_factor is True, not an integer"),
        ("upsample", ["x"], {"scale_factor": [2, 2]}, "not an integer"),
        ("layer_norm", ["x", "w", "b"], {"normalized_shape": 8, "eps": "small"}, "eps is 'small', not a number"),
        ("linear", ["x"], {"in_features": 8, "out_features": 8}, "takes 2 to 7 inputs, not 1"),
    ],
)
def test_mistakes_are_refused_when_they_are_made(op, inputs, attributes, message):
    graph = Graph()
    graph.input("x", ["batch", 8])
    with pytest.raises(mdrt.InvalidArgumentError, match=message):
        graph.add(op, inputs, name="node", **attributes)
    assert not graph.nodes


def test_names_are_unique():
    graph = small_graph()
    with pytest.raises(mdrt.InvalidArgumentError, match="already a value called 'x'"):
        graph.input("x", [1])
    with pytest.raises(mdrt.InvalidArgumentError, match="already a value called 'act'"):
        graph.add("silu", ["conv"], name="act")
    with pytest.raises(mdrt.InvalidArgumentError, match="output y: there is already one"):
        graph.output("conv", "y")
    with pytest.raises(mdrt.InvalidArgumentError, match="output z: there is no node 'x'"):
        graph.output("x", "z")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["nodes"][1]["inputs"].__setitem__(0, 7), "not an earlier value"),
        (lambda d: d["nodes"][1]["inputs"].__setitem__(0, -1), "not an earlier value"),
        (lambda d: d["nodes"][1].pop("op"), "not a graph"),
        (lambda d: d["nodes"].clear() or d["outputs"].clear(), "norm.weight is not used"),
        (lambda d: d["outputs"][0].update(value=99), "not an earlier value"),
        (lambda d: d["inputs"][0].update(dtype="fp64"), "not one of fp32, int32"),
    ],
)
def test_bad_documents_are_refused(change, message):
    document = copy.deepcopy(small_graph().to_dict())
    change(document)
    with pytest.raises(mdrt.InvalidArgumentError, match=message):
        Graph.from_dict(document)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"num_groups": 3}, "norm"),
        ({"num_groups": 0}, "num_groups"),
        ({"num_channels": 16}, "norm"),
        ({"eps": 0.0}, "eps"),
    ],
)
def test_validate_asks_the_library(attributes, message):
    graph = Graph()
    graph.input("x", ["batch", 8])
    settings = {"num_groups": 4, "num_channels": 8, "eps": 1e-5, **attributes}
    graph.output(graph.add("group_norm", ["x", "w", "b"], name="norm", **settings))
    with pytest.raises(mdrt.Error, match=message):
        graph.validate()


def test_every_op_has_a_reference():
    assert set(op_table()) == set(REFERENCES)
    for op, reference in REFERENCES.items():
        names = [attribute["name"] for attribute in op_table()[op]["attributes"]]
        assert set(reference.uses) <= set(names)
        for case in reference.cases:
            assert sorted(case.attributes) == sorted(names), op
