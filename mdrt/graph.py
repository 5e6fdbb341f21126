"""The plain graph of a component: semantic ops, named values, no execution (docs/format.md, "Graph")."""

from __future__ import annotations

import functools
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from mdrt.errors import InvalidArgumentError

# Logical shapes of the weights of each op, by weight slot: names of attributes. A list attribute
# (kernel_size) stands for all its numbers; () is a single number, [1].
_WEIGHT_SHAPES: dict[str, dict[str, tuple[str, ...]]] = {
    "conv2d": {
        "weight": ("out_channels", "in_channels", "kernel_size"),
        "bias": ("out_channels",),
        "weight_scale": ("out_channels",),
        "weight_sum": ("out_channels",),
        "input_scale": (),
        "input_zero_point": (),
    },
    "depthwise_conv2d": {"weight": ("channels", "kernel_size"), "bias": ("channels",)},
    "linear": {
        "weight": ("out_features", "in_features"),
        "bias": ("out_features",),
        "weight_scale": ("out_features",),
        "weight_sum": ("out_features",),
        "input_scale": (),
        "input_zero_point": (),
    },
    "group_norm": {"weight": ("num_channels",), "bias": ("num_channels",)},
    "layer_norm": {"weight": ("normalized_shape",), "bias": ("normalized_shape",)},
    "embedding": {
        "weight": ("num_embeddings", "embedding_dim"),
        "position_weight": ("max_position_embeddings", "embedding_dim"),
        "weight_scale": ("num_embeddings",),
        "position_weight_scale": ("max_position_embeddings",),
    },
}


@functools.cache
def op_table() -> dict[str, dict[str, Any]]:
    """The rows of csrc/ops.def by op name: `inputs` and `attributes`, lists of dictionaries."""
    from mdrt import _core

    return {row["name"]: row for row in _core.op_table()}


@dataclass(frozen=True)
class Input:
    """An input: `dtype` is "fp32" or "int32"; a dimension is a size or a symbol such as "batch"."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Node:
    """One op; `inputs` are names of values, `attributes` those of the op's row in csrc/ops.def."""

    op: str
    name: str
    inputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Weight:
    """A weight: `kind` is "panel", "vector", "table" or "depthwise"; `shape` is the logical one (checkpoint layout).

    `integers` is "int8" or "int32" where the graph demands integers of that type; None: numbers, in any format.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    integers: str | None = None


class Graph:
    """Inputs, weights, nodes and outputs. Values are called by their unique names; channels are always last.

    >>> graph = Graph()
    >>> x = graph.input("x", ["batch", 8], "fp32")
    >>> y = graph.add("linear", [x, "proj.weight"], name="proj", in_features=8, out_features=4)
    >>> graph.output(y, "y")
    """

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self.weights: dict[str, Weight] = {}
        self.nodes: list[Node] = []
        self.outputs: dict[str, str] = {}
        self._values: set[str] = set()

    def __repr__(self) -> str:
        return (
            f"Graph({len(self.inputs)} inputs, {len(self.weights)} weights, {len(self.nodes)} nodes, "
            f"outputs {list(self.outputs)})"
        )

    def __str__(self) -> str:
        lines = [f"{i.name}: {i.dtype} [{', '.join(map(str, i.shape))}]" for i in self.inputs]
        for node in self.nodes:
            attributes = " ".join(f"{key}={value}" for key, value in node.attributes.items())
            lines.append(f"{node.name} = {node.op}({', '.join(node.inputs)}) {attributes}".rstrip())
        lines += [f"-> {name} = {value}" for name, value in self.outputs.items()]
        return "\n".join(lines)

    def input(self, name: str, shape: Sequence[int | str], dtype: str = "fp32") -> str:
        """Adds an input of `shape` (sizes or symbols; the first dimension is the batch); returns its name.

        Raises:
            InvalidArgumentError: the name is taken or the dtype is neither "fp32" nor "int32".
        """
        if dtype not in ("fp32", "int32"):
            raise InvalidArgumentError(f"input {name}: dtype {dtype!r} is not one of fp32, int32")
        self._claim(name)
        self.inputs.append(Input(name, dtype, tuple(shape)))
        return name

    def add(self, op: str, inputs: Sequence[str], *, name: str, **attributes: Any) -> str:
        """Adds a node; returns the name of its value, which is `name`.

        In the op's weight slots a new name makes a weight of the logical shape that the attributes demand. Values must
        exist before they are used. Trailing optional inputs are left out.

        Raises:
            InvalidArgumentError: unknown op or attribute, wrong number of inputs, unknown value, or a taken name.
        """
        row = op_table().get(op)
        if row is None:
            raise InvalidArgumentError(f"node {name}: there is no op {op!r}; there are {', '.join(sorted(op_table()))}")
        attributes = _checked_attributes(name, row, attributes)
        names = [slot["name"] for slot in row["inputs"]]
        is_quantised = "weight_scale" in names[: len(inputs)]
        for value, slot in zip(inputs, _input_slots(name, row, len(inputs)), strict=True):
            if slot["kind"] in ("weight", "optional_weight"):
                shape = _weight_shape(op, slot["name"], attributes)
                self._use_weight(name, Weight(value, slot["weight_kind"], shape, _integers(slot, is_quantised)))
            elif value not in self._values or value in self.weights:
                raise InvalidArgumentError(
                    f"node {name}: input {slot['name']} uses {value!r}, which is no earlier value"
                )
        self._claim(name)
        self.nodes.append(Node(op, name, tuple(inputs), attributes))
        return name

    def output(self, value: str, name: str | None = None) -> None:
        """Makes the value of a node an output, called `name` (default: like the value).

        Raises:
            InvalidArgumentError: no such node, or the output's name is taken.
        """
        name = value if name is None else name
        if value not in self._values or value in self.weights or value in {i.name for i in self.inputs}:
            raise InvalidArgumentError(f"output {name}: there is no node {value!r}")
        if name in self.outputs:
            raise InvalidArgumentError(f"output {name}: there is already one of this name")
        self.outputs[name] = value

    def validate(self) -> None:
        """Checks the whole graph with the library's own validator, the one that opens bundles.

        Raises:
            InvalidArgumentError: a sentence naming node and field.
        """
        from mdrt import _core

        _core.validate_graph(self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """The document of docs/format.md: plain lists and dictionaries, ready for JSON."""
        names = [i.name for i in self.inputs] + list(self.weights) + [node.name for node in self.nodes]
        number = {name: index for index, name in enumerate(names)}
        return {
            "inputs": [{"name": i.name, "dtype": i.dtype, "shape": list(i.shape)} for i in self.inputs],
            "weights": list(self.weights),
            "nodes": [
                {
                    "op": node.op,
                    "name": node.name,
                    "inputs": [number[value] for value in node.inputs],
                    "attributes": dict(node.attributes),
                }
                for node in self.nodes
            ],
            "outputs": [{"name": name, "value": number[value]} for name, value in self.outputs.items()],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Graph:
        """The graph of a document as `to_dict` makes it.

        Raises:
            InvalidArgumentError: the document is not a graph.
        """
        graph = cls()
        try:
            for entry in document["inputs"]:
                graph.input(entry["name"], entry["shape"], entry["dtype"])
            names = [i.name for i in graph.inputs] + list(document["weights"])
            for entry in document["nodes"]:
                inputs = [names[_number(entry["name"], value, len(names))] for value in entry["inputs"]]
                names.append(graph.add(entry["op"], inputs, name=entry["name"], **entry["attributes"]))
            for entry in document["outputs"]:
                graph.output(names[_number(entry["name"], entry["value"], len(names))], entry["name"])
            unused = [name for name in document["weights"] if name not in graph.weights]
            if unused:
                raise InvalidArgumentError(f"weight {unused[0]} is not used by any node")
            graph.weights = {name: graph.weights[name] for name in document["weights"]}
        except (KeyError, TypeError) as error:
            raise InvalidArgumentError(f"the document is not a graph: {error!r}") from error
        return graph

    @classmethod
    def load(cls, path: str | PathLike[str], component: str) -> Graph:
        """The graph of one component of a bundle.

        Raises:
            BundleError, FileError, VersionError: the file is not a usable bundle.
            InvalidArgumentError: it has no such component.
        """
        import json

        from mdrt import _core

        components = json.loads(_core.Model(path).metadata())["components"]
        if component not in components:
            raise InvalidArgumentError(f"{path} has no component {component!r}; it has {', '.join(components)}")
        return cls.from_dict(components[component])

    def _claim(self, name: str) -> None:
        if name in self._values:
            raise InvalidArgumentError(f"there is already a value called {name!r}; names are unique")
        self._values.add(name)

    def _use_weight(self, node: str, weight: Weight) -> None:
        known = self.weights.get(weight.name)
        if known is None:
            self._claim(weight.name)
            self.weights[weight.name] = weight
        elif known != weight:
            raise InvalidArgumentError(
                f"node {node}: weight {weight.name} is a {_words(known)}, but {_words(weight)} is needed"
            )


def _number(name: str, value: Any, count: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise InvalidArgumentError(f"{name}: value number {value!r} is not an earlier value (0 to {count - 1})")
    return value


def _input_slots(name: str, row: Mapping[str, Any], count: int) -> Iterator[Mapping[str, Any]]:
    """The slot of each of `count` inputs; a slot for many takes all that remain."""
    slots = row["inputs"]
    many = bool(slots) and slots[-1]["kind"] == "many_activations"
    least = sum(not slot["kind"].startswith("optional") for slot in slots) + many
    if count < least or (count > len(slots) and not many):
        takes = f"{least} or more" if many else str(least) if least == len(slots) else f"{least} to {len(slots)}"
        raise InvalidArgumentError(f"node {name}: op {row['name']} takes {takes} inputs, not {count}")
    for index in range(count):
        yield slots[min(index, len(slots) - 1)]


def _integers(slot: Mapping[str, Any], is_quantised: bool) -> str | None:
    if slot["is_integer"]:
        return "int32"
    return "int8" if is_quantised and slot["weight_kind"] != "vector" else None


def _words(weight: Weight) -> str:
    return f"{weight.kind} {weight.shape}" + (f" of {weight.integers}" if weight.integers else "")


def _weight_shape(op: str, slot: str, attributes: Mapping[str, Any]) -> tuple[int, ...]:
    shape: list[int] = []
    for attribute in _WEIGHT_SHAPES[op][slot]:
        value = attributes[attribute]
        shape.extend(value if isinstance(value, list) else [value])
    return tuple(shape) or (1,)


def _checked_attributes(name: str, row: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes in the order of the row, in the types of the document; ranges are the validator's business."""
    expected = [attribute["name"] for attribute in row["attributes"]]
    wrong = [key for key in attributes if key not in expected] or [key for key in expected if key not in attributes]
    if wrong:
        raise InvalidArgumentError(
            f"node {name}: attribute {wrong[0]!r} is {'unknown' if wrong[0] in attributes else 'missing'}; "
            f"op {row['name']} has {', '.join(expected) or 'none'}"
        )
    return {
        attribute["name"]: _attribute_value(name, attribute, attributes[attribute["name"]])
        for attribute in row["attributes"]
    }


def _attribute_value(name: str, attribute: Mapping[str, Any], value: Any) -> Any:
    if attribute["type"] == "word":
        if value not in attribute["words"]:
            words = ", ".join(attribute["words"])
            raise InvalidArgumentError(f"node {name}: attribute {attribute['name']} is {value!r}, not one of {words}")
        return value
    count = attribute["count"]
    entries = [value] if count == 1 else value
    kind = numbers.Real if attribute["type"] == "real" else numbers.Integral
    is_list = isinstance(entries, (list, tuple)) and len(entries) == count
    if not is_list or not all(isinstance(entry, kind) and not isinstance(entry, bool) for entry in entries):
        what = "a number" if kind is numbers.Real else f"{count} integers" if count > 1 else "an integer"
        raise InvalidArgumentError(f"node {name}: attribute {attribute['name']} is {value!r}, not {what}")
    converted = [float(entry) if kind is numbers.Real else int(entry) for entry in entries]
    return converted[0] if count == 1 else converted
