"""Native kernels against the NumPy references: every op around the sizes of tiles, on every instruction set."""

import zlib

import numpy as np
import pytest

from mdrt import _core
from mdrt.graph import Graph, op_table
from mdrt.interpreter import Interpreter
from mdrt.ops import REFERENCES, Case

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


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", REFERENCES)
def test_kernel_matches_reference(op, isa):
    reference = REFERENCES[op]
    for case in reference.cases:
        inputs = random_inputs(op, case)
        graph, feeds, weights = one_node(op, case, inputs)
        result = Interpreter(graph, weights, threads=1, isa=isa).run(feeds)["y"]
        expected = reference(inputs, case.attributes)
        assert result.dtype == np.float32 and result.shape == expected.shape, case
        share = np.abs(result - expected) / np.maximum(reference.bound(inputs, case.attributes), 1e-45)
        assert share.max() <= 1, f"{case}: error {share.max():.2f} of the bound"


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
        # Activations may be halves between layers, as the format says: half an ulp of fp16 of the output, and of the input.
        bound = reference.bound(rounded, case.attributes) + 2.0**-10 * np.abs(
            reference([abs(array) for array in rounded], case.attributes)
        )
        assert (error <= bound).all(), case


def test_reference_bound_is_tight_enough():
    """A wrong tap, a swapped pair of channels or a lost bias exceeds the bound by orders of magnitude."""
    case = Case(((1, 4, 4, 8), (8, 8, 3, 3), (8,)), REFERENCES["conv2d"].cases[2].attributes | {"out_channels": 8})
    x, weight, bias = random_inputs("conv2d", case)
    bound = REFERENCES["conv2d"].bound([x, weight, bias], case.attributes)
    expected = REFERENCES["conv2d"]([x, weight, bias], case.attributes)
    for wrong in ([x, weight[:, ::-1], bias], [x, weight[..., ::-1], bias], [x, weight, 0 * bias]):
        assert (np.abs(REFERENCES["conv2d"](wrong, case.attributes) - expected) > 100 * bound).mean() > 0.9
