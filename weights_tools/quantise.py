"""Which layers of a checkpoint become int8, wholly or their weights alone, and how much each of them loses by it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt.formats import ComponentFormat
from mdrt.ops import REFERENCES
from mdrt.ops.int8 import as_floats
from mdrt.quantise import (
    Layer,
    Weights,
    input_parameters,
    layers,
    quantise_columns,
    quantise_dynamic,
    quantise_static,
)
from weights_tools.calibrate import Record, Records
from weights_tools.components import Network

# Of layers whose weights are not int8.
OTHER_FORMAT = "fp16"

# The relative RMSE from which on a layer is not int8, unless its component is given another. Eight bits cost the layers
# of a trained model 0.2 to 2 %, and every bit less doubles that: a layer beyond 3 % has outliers that leave it six or
# seven useful bits, and with so few in all layers pictures lose 5 to 11 dB.
MAX_ERROR = 0.03

# Modules that read the latent or the timestep, or make the latent or the picture: they are small, and nothing behind or
# before them evens their errors out.
_ENDS: Mapping[str, tuple[str, ...]] = {
    "unet": ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"),
    "vae_decoder": ("post_quant_conv", "decoder.conv_in", "decoder.conv_out"),
}
# Keys and values of the prompt: a few tokens, on which every pixel of the picture depends. They cost the worst pictures
# 3 dB, and are 0.7 % of the multiply-adds and 4 % of the weights of the published UNet.
_CONTEXT = "encoder_hidden_states"
_RoundInput = Callable[[Layer, NDArray[np.float32], Record], NDArray[np.float32]]
# It makes the latent of a whole picture and runs once.
_NEVER = "vae_encoder"


@dataclass(frozen=True)
class Choice:
    """The format of one layer and why.

    Attributes:
        component, layer, op: which it is; layers are called like their weight without `.weight`.
        parameters: of its weights.
        format: the first of "int8", "int8_weights" and OTHER_FORMAT whose error is at most max_error.
        reason: why it is not int8: "ends", "context", "encoder", or "error", which is above max_error; else "".
        max_error: the largest error of int8 in its component.
        error: relative RMSE that int8 makes in its products on calibration data, in a table's values for an embedding;
            None: it was no candidate.
        weights_error: the same of int8 weights with float inputs; None: it was not needed.
        input: "static": one scale and zero point, calibrated; "dynamic": a scale for each pixel or token; "": none.
        low, high: the range of its calibrated inputs, which contains 0.
    """

    component: str
    layer: str
    op: str
    parameters: int
    max_error: float
    format: str
    reason: str = ""
    error: float | None = None
    weights_error: float | None = None
    input: str = ""
    low: float = 0.0
    high: float = 0.0


def candidates(networks: Mapping[str, Network]) -> dict[str, dict[str, Layer]]:
    """By component, the layers whose inputs calibration must see."""
    return {
        component: {
            name: layer
            for name, layer in layers(network.graph).items()
            if layer.op != "embedding" and not _kept(component, layer)
        }
        for component, network in networks.items()
        if component != _NEVER
    }


def choose(
    networks: Mapping[str, Network], records: Records, max_error: Mapping[str, float] | None = None
) -> tuple[dict[str, ComponentFormat], list[Choice]]:
    """The formats of all components of a checkpoint, and how every layer's was found.

    Args:
        networks: by component.
        records: what calibration saw of `candidates`.
        max_error: by component, where it is not MAX_ERROR.
    """
    formats, choices = {}, []
    for component, network in networks.items():
        limit = (max_error or {}).get(component, MAX_ERROR)
        found = [
            _choice(component, layer, network.weights, records.get(component, {}).get(name), limit)
            for name, layer in layers(network.graph).items()
        ]
        choices += found
        static = [choice for choice in found if choice.format == "int8" and choice.input == "static"]
        formats[component] = ComponentFormat(
            OTHER_FORMAT,
            layers={choice.layer: choice.format for choice in found},
            input_ranges={choice.layer: (choice.low, choice.high) for choice in static},
        )
    return formats, choices


def _kept(component: str, layer: Layer) -> str:
    """Why a layer is no candidate, else ""."""
    if component == _NEVER:
        return "encoder"
    if any(node.inputs[0] == _CONTEXT for node in layer.nodes):
        return "context"
    return "ends" if layer.name in _ENDS.get(component, ()) else ""


def _choice(component: str, layer: Layer, weights: Weights, record: Record | None, max_error: float) -> Choice:
    choice = Choice(
        component,
        layer.name,
        layer.op,
        parameters=sum(math.prod(weights[name].shape) for name in _matrices(layer)),
        max_error=max_error,
        format=OTHER_FORMAT,
        reason=_kept(component, layer),
    )
    if choice.reason:
        return choice
    if record is None:
        error = math.sqrt(_ratio(_table_errors(layer, weights)))
    else:
        error = math.sqrt(_ratio(_product_errors(layer, weights, record, _rounded_input)))
        choice = dataclasses.replace(
            choice, input="static" if layer.needs_input_range else "dynamic", low=record.low, high=record.high
        )
    choice = dataclasses.replace(choice, error=error)
    if error <= max_error:
        return dataclasses.replace(choice, format="int8")
    choice = dataclasses.replace(choice, reason="error")
    if record is None:
        return choice
    weights_error = math.sqrt(_ratio(_product_errors(layer, weights, record, _exact_input)))
    format = "int8_weights" if weights_error <= max_error else OTHER_FORMAT
    return dataclasses.replace(choice, weights_error=weights_error, format=format)


def _matrices(layer: Layer) -> tuple[str, ...]:
    """Names of the weights that become integers."""
    return layer.nodes[0].inputs[1:3] if layer.op == "embedding" else (layer.weight,)


def _ratio(pairs: Iterator[tuple[NDArray[Any], NDArray[Any]]]) -> float:
    """Sum of squared errors relative to the sum of squares, over pairs of exact and quantised values."""
    error = total = 0.0
    for exact, quantised in pairs:
        error += float(np.sum((quantised - exact) ** 2, dtype=np.float64))
        total += float(np.sum(exact**2, dtype=np.float64))
    return error / total if total else 0.0


def _table_errors(layer: Layer, weights: Weights) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    for name in _matrices(layer):
        table = np.asarray(weights[name], dtype=np.float32)
        yield table, _rounded_columns(table)


def _product_errors(
    layer: Layer, weights: Weights, record: Record, round_input: _RoundInput
) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Products without bias, which would hide their error."""
    weight = np.asarray(weights[layer.weight], dtype=np.float32)
    rounded = _rounded_columns(weight)
    reference, attributes = REFERENCES[layer.op], layer.nodes[0].attributes
    for piece in record.pieces:
        x = piece.astype(np.float32)
        yield reference([x, weight], attributes), reference([round_input(layer, x, record), rounded], attributes)


def _rounded_columns(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return as_floats(*quantise_columns(weight))


def _exact_input(_layer: Layer, x: NDArray[np.float32], _record: Record) -> NDArray[np.float32]:
    return x


def _rounded_input(layer: Layer, x: NDArray[np.float32], record: Record) -> NDArray[np.float32]:
    if layer.needs_input_range:
        scale, zero_point = input_parameters((record.low, record.high))
        return np.asarray((quantise_static(x, scale, zero_point) - np.float32(zero_point)) * scale)
    integers, scales = quantise_dynamic(x)
    return np.asarray(integers * scales)


def report(choices: Sequence[Choice]) -> dict[str, Any]:
    """The choices for programs: `max_error` by component, `parameters` by format, and `layers`."""
    parameters: dict[str, int] = {}
    for choice in choices:
        parameters[choice.format] = parameters.get(choice.format, 0) + choice.parameters
    return {
        "max_error": {choice.component: choice.max_error for choice in choices},
        "parameters": parameters,
        "layers": [dataclasses.asdict(choice) for choice in choices],
    }


def text(report: Mapping[str, Any]) -> str:
    """`report` for people: a line for each layer; the errors, of weights alone too, in per cent."""
    lines = [f"{'component':<13} {'layer':<62} {'op':<9} {'input':<8} {'error':>7} {'weights':>7}  format"]
    for entry in report["layers"]:
        reason = f" ({entry['reason']})" if entry["reason"] else ""
        lines.append(
            f"{entry['component']:<13} {entry['layer']:<62} {entry['op']:<9} {entry['input']:<8} "
            f"{_percent(entry['error']):>7} {_percent(entry['weights_error']):>7}  {entry['format']}{reason}"
        )
    shares = ", ".join(f"{format} {count / 1e6:.1f} M" for format, count in report["parameters"].items())
    limits = ", ".join(f"{component} {100 * limit:g} %" for component, limit in report["max_error"].items())
    lines.append(f"parameters of these layers: {shares}; the largest error of int8: {limits}")
    return "\n".join(lines)


def _percent(error: float | None) -> str:
    return "" if error is None else f"{100 * error:.2f} %"
