"""Kernels against their references and pictures against stored ones, on this machine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt import _core
from mdrt.compare import psnr
from mdrt.formats import ComponentFormat
from mdrt.graph import Graph, op_table
from mdrt.interpreter import Interpreter
from mdrt.ops import REFERENCES, Case
from mdrt.ops.int8 import as_floats
from mdrt.quantise import layers, quantise_columns

# Two pictures that PyTorch made in float32 from the checkpoint of the built-in model, in one step and in eight.
GOLDEN = Path(__file__).parent / "models" / "golden.npz"
_OPS = {"int8": ("conv2d", "linear", "embedding"), "int8_weights": ("conv2d", "linear")}
# In dB. The weights are int8, which leaves pictures a little more (docs/built-in-model.md); rounding magnifies the last
# places in which instruction sets differ. A kernel that is wrong leaves less than 30.
MIN_PSNR = 40.0


def run(*, threads: int | None = None) -> dict[str, Any]:
    """Every kernel on every instruction set that this CPU executes, then the golden pictures of the built-in model.

    Returns:
        `passed`; `kernels`: for each ISA and op what `check_kernel` returns; `pictures`: prompt, PSNR in dB, passed.
    """
    isas = [isa["name"] for isa in _core.build_info()["isas"] if isa["usable"]]
    kernels = [check_kernel(op, isa, threads) for isa in isas for op in REFERENCES]
    kernels += [check_kernel(op, isa, threads, format) for isa in isas for format, ops in _OPS.items() for op in ops]
    pictures = _pictures(threads)
    passed = not any(kernel["failed"] for kernel in kernels) and all(p["passed"] for p in pictures)
    return {"passed": passed, "kernels": kernels, "pictures": pictures}


def check_kernel(op: str, isa: str, threads: int | None = None, format: str = "fp32") -> dict[str, Any]:
    """Runs all cases of one op in "fp32", "int8" or "int8_weights".

    Returns:
        isa, op, format, the number of `cases`, how many `failed`, and the `worst` error as a share of its reference's
        bound; the bound of int8 is no difference at all.
    """
    check = {"fp32": _share_of_bound, "int8": _int8_share, "int8_weights": _int8_weights_share}[format]
    worst, failed = 0.0, 0
    for number, case in enumerate(REFERENCES[op].cases):
        share = check(op, case, number, isa, threads)
        worst = max(worst, share)
        failed += not share <= 1
    return {
        "isa": isa,
        "op": op,
        "format": format,
        "cases": len(REFERENCES[op].cases),
        "failed": failed,
        "worst": worst,
    }


def _share_of_bound(op: str, case: Case, number: int, isa: str, threads: int | None) -> float:
    """The largest error of the native kernel, 1 being the bound of the op's reference."""
    graph, feeds, weights, arrays = _one_node(op, case, number)
    result = Interpreter(graph, weights, threads=threads, isa=isa).run(feeds)["y"]
    return _share(result, op, arrays, case)


def _int8_weights_share(op: str, case: Case, number: int, isa: str, threads: int | None) -> float:
    """As `_share_of_bound`, of the weights as they are stored."""
    graph, feeds, weights, (x, weight, *bias) = _one_node(op, case, number)
    result = Interpreter(graph, weights, threads=threads, isa=isa, format="int8_weights").run(feeds)["y"]
    return _share(result, op, [x, as_floats(*quantise_columns(weight)), *bias], case)


def _share(result: NDArray[np.float32], op: str, arrays: list[NDArray[Any]], case: Case) -> float:
    error = np.abs(result - REFERENCES[op](arrays, case.attributes))
    bound = REFERENCES[op].bound(arrays, case.attributes)
    if not np.isfinite(result).all():
        return math.inf
    return float(np.max(error / np.maximum(bound, np.finfo(np.float32).tiny)))


def _int8_share(op: str, case: Case, number: int, isa: str, threads: int | None) -> float:
    """0 when the native kernel gives the bytes of the reference, else infinite; every other case has an input range."""
    graph, feeds, weights, _ = _one_node(op, case, number)
    layer, *_ = layers(graph).values()
    has_range = op != "embedding" and (layer.needs_input_range or number % 2 == 1)
    format = ComponentFormat("int8", input_ranges={layer.name: (-2.5, 3.0)} if has_range else {})
    result = Interpreter(graph, weights, threads=threads, isa=isa, format=format).run(feeds)["y"]
    expected = Interpreter(graph, weights, "reference", format=format).run(feeds)["y"]
    return 0.0 if np.array_equal(result, expected) else math.inf


def _one_node(
    op: str, case: Case, number: int
) -> tuple[Graph, dict[str, NDArray[Any]], dict[str, NDArray[Any]], list[NDArray[Any]]]:
    """A graph of one node with feeds and weights, and both in the order of the node's inputs."""
    generator = np.random.default_rng(number)
    attributes = dict(case.attributes)
    arrays = [
        _array(slot, shape, attributes, generator) for slot, shape in zip(_slots(op, case), case.shapes, strict=True)
    ]
    graph, names = Graph(), []
    feeds: dict[str, NDArray[Any]] = {}
    weights: dict[str, NDArray[Any]] = {}
    for index, (slot, array) in enumerate(zip(_slots(op, case), arrays, strict=True)):
        name = f"{slot['name']}{index}"
        names.append(name)
        if "weight" in slot["kind"]:
            weights[name] = array
        else:
            feeds[name] = array
            graph.input(name, array.shape, "int32" if array.dtype == np.int32 else "fp32")
    graph.output(graph.add(op, names, name="node", **attributes), "y")
    return graph, feeds, weights, arrays


def _slots(op: str, case: Case) -> list[dict[str, Any]]:
    slots = op_table()[op]["inputs"]
    return [slots[min(index, len(slots) - 1)] for index in range(len(case.shapes))]


def _array(
    slot: dict[str, Any], shape: tuple[int, ...], attributes: dict[str, Any], generator: np.random.Generator
) -> NDArray[Any]:
    if slot["name"] == "input_ids":
        return generator.integers(0, attributes["num_embeddings"], shape).astype(np.int32)
    if slot["name"] == "timestep":
        return generator.uniform(0, 999, shape).astype(np.float32)
    return generator.standard_normal(shape).astype(np.float32)


def _pictures(threads: int | None) -> list[dict[str, Any]]:
    from mdrt.pipeline import Pipeline

    results = []
    with np.load(GOLDEN) as golden, Pipeline(threads=threads) as pipe:
        for number, prompt in enumerate(golden["prompts"]):
            image = pipe(
                str(prompt),
                latents=golden["noise"][number : number + 1],
                num_inference_steps=int(golden["num_inference_steps"][number]),
                guidance_scale=float(golden["guidance_scale"][number]),
            )
            decibels = psnr(np.asarray(image), golden["images"][number], peak=255)
            results.append({"prompt": str(prompt), "psnr": decibels, "passed": decibels >= MIN_PSNR})
    return results


def text(results: dict[str, Any]) -> str:
    """`run` for people."""
    lines = []
    for kernel in results["kernels"]:
        state = "FAILED" if kernel["failed"] else "ok"
        lines.append(
            f"{kernel['isa']:<10} {kernel['op']:<20} {kernel['format']}  {kernel['cases']:>3} cases  "
            f"{kernel['worst']:6.3f} of bound  {state}"
        )
    for picture in results["pictures"]:
        lines.append(f"{picture['psnr']:5.1f} dB  {picture['prompt']}  {'ok' if picture['passed'] else 'FAILED'}")
    lines.append("passed" if results["passed"] else "FAILED")
    return "\n".join(lines)
