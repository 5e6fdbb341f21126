"""Prints mdrt/layers.txt: the layers of the canonical models as the planner fuses them, and how often each occurs.

    python benchmarks/list_layers.py > mdrt/layers.txt

A test compares the file with this. One picture of 512x512 pixels, without guidance, 77 tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from mdrt.graph import Graph, Node
from mdrt.layers import MODELS
from weights_tools.new import canonical_graphs

SIZES = {"batch": 1, "height": 64, "width": 64, "latent_height": 64, "latent_width": 64, "sequence_length": 77}
LEAST_SHARE = 0.001  # of a model's multiply-adds; lighter products are left out
ACTIVATIONS = ("silu", "gelu", "quick_gelu")
HEAD = f"""# Layers of the canonical models as the planner fuses them (the language: layers.py), the heaviest first.
# Numbers: how often each occurs in {", ".join(MODELS)}.
# One picture of 512x512 pixels without guidance, 77 tokens. Written by benchmarks/list_layers.py."""

Shape = tuple[int, ...]


class Walk:
    """One graph with its shapes; `layers` yields the text and the multiply-adds of each layer."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.shapes: dict[str, Shape] = {
            entry.name: tuple(SIZES[size] if isinstance(size, str) else size for size in entry.shape)
            for entry in graph.inputs
        }
        self.producers = {node.name: node for node in graph.nodes}
        self.order = {node.name: number for number, node in enumerate(graph.nodes)}
        self.readers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            self.shapes[node.name] = self.shape(node)
            for value in dict.fromkeys(node.inputs):
                self.readers.setdefault(value, []).append(node)

    def shape(self, node: Node) -> Shape:
        """Of the node's value."""
        found = node.attributes
        x = self.shapes[node.inputs[0]]
        if node.op in ("conv2d", "depthwise_conv2d"):
            pads, kernel, stride = found["pads"], found["kernel_size"], found["stride"]
            sides = [(x[1 + i] + pads[i] + pads[2 + i] - kernel[i]) // stride[i] + 1 for i in (0, 1)]
            return (x[0], *sides, found.get("out_channels", x[-1]))
        if node.op in ("upsample", "resize_like"):
            factor = found.get("scale_factor", 1)
            sides = self.shapes[node.inputs[-1]][1:3]
            return (x[0], sides[0] * factor, sides[1] * factor, x[3])
        if node.op in ("embedding", "timestep_embedding"):
            return (*x, found["embedding_dim"])
        channels = {
            "linear": found.get("out_features"),
            "gated_unit": x[-1] // 2,
            "concat": sum(self.shapes[value][-1] for value in node.inputs if value in self.shapes),
        }
        return (*x[:-1], channels.get(node.op) or x[-1])

    def layers(self) -> Iterator[tuple[str, int]]:
        for node in self.graph.nodes:
            if node.op in ("conv2d", "linear"):
                yield self.product(node)
            elif node.op == "attention":
                yield self.attention(node)
            elif node.op == "layer_norm":
                yield f"{self.source(node.inputs[0])} | layer_norm", 0
            elif node.op == "group_norm":
                yield f"{self.source(node.inputs[0])} | group_norm {node.attributes['num_groups']}", 0

    def attention(self, node: Node) -> tuple[str, int]:
        q, k = (self.shapes[value] for value in node.inputs[:2])
        keys = math.prod(k[1:-1])
        text = f"{self.source(node.inputs[0])} | attention {node.attributes['num_heads']} heads {keys} keys"
        if node.attributes["is_causal"] == "true":
            text += " causal"
        if node.attributes["attention_fn"] == "relu":
            text += " relu"
        if node.inputs[1] == node.inputs[2]:
            text += " shared"
        return text, 2 * math.prod(q) * keys

    def product(self, node: Node) -> tuple[str, int]:
        before, source = self.before(node)
        found = node.attributes
        pixels = math.prod(self.shapes[node.name][:-1])
        if node.op == "linear":
            main = f"linear {found['out_features']}"
            macs = pixels * found["in_features"] * found["out_features"]
        else:
            main = f"conv2d {kernel(node)} {found['out_channels']}"
            macs = pixels * found["in_channels"] * found["out_channels"] * math.prod(found["kernel_size"])
        return " | ".join([self.source(source), *before, main, *self.after(node)]), macs

    def source(self, value: str) -> str:
        """The size of a layer's input, concatenated channels apart."""
        *sizes, channels = map(str, self.shapes[value][1:])
        producer = self.producers.get(value)
        if producer is not None and producer.op == "concat":
            channels = "+".join(str(self.shapes[part][-1]) for part in producer.inputs)
        return "x".join([*sizes, channels])

    def before(self, node: Node) -> tuple[list[str], str]:
        """What the loader does on the way, first op first, and the value that it reads."""
        ops: list[str] = []
        value = node.inputs[0]

        def previous(*wanted: str) -> Node | None:
            producer = self.only_read_here(value)
            return producer if producer is not None and producer.op in wanted else None

        if node.op == "conv2d" and (producer := previous("depthwise_conv2d")):
            ops.insert(0, f"depthwise_conv2d {kernel(producer)}")
            value = producer.inputs[0]
        if producer := previous("upsample", "resize_like"):
            size = "x".join(map(str, self.shapes[producer.name][1:3]))
            ops.insert(0, f"{producer.op} {producer.attributes.get('scale_factor', size)}")
            value = producer.inputs[0]
        if producer := previous(*ACTIVATIONS):
            norm = self.only_read_here(producer.inputs[0])
            if norm is not None and norm.op == "group_norm":
                ops.insert(0, producer.op)
                value = producer.inputs[0]
        if producer := previous("group_norm"):
            ops.insert(0, f"group_norm {producer.attributes['num_groups']}")
            value = producer.inputs[0]
        return ops, value

    def after(self, node: Node) -> list[str]:
        """What the epilogue does, first op first."""
        ops: list[str] = []
        value = node.name
        while len(readers := self.readers.get(value, [])) == 1:
            reader = readers[0]
            if reader.op == "gated_unit":
                ops.append(f"gated_unit {reader.attributes['act_fn']}")
            elif reader.op in ACTIVATIONS:
                ops.append(reader.op)
            elif reader.op != "add":
                break
            elif len(self.shapes[reader.inputs[1]]) == 2 < len(self.shapes[value]):
                ops.append("add image")
            else:
                if not self.is_last_product(node, reader, value):
                    break
                return [*ops, "add"]
            value = reader.name
        return ops

    def is_last_product(self, node: Node, add: Node, value: str) -> bool:
        """Of two products that are added, the later one adds."""
        if len(self.shapes[value]) == 2:
            return False
        other = self.only_read_here(add.inputs[1] if add.inputs[0] == value else add.inputs[0])
        while other is not None and other.op in (*ACTIVATIONS, "add"):
            other = self.only_read_here(other.inputs[0])
        return other is None or other.op not in ("conv2d", "linear") or self.order[other.name] < self.order[node.name]

    def only_read_here(self, value: str) -> Node | None:
        is_inner = len(self.readers.get(value, [])) == 1 and value not in self.graph.outputs.values()
        return self.producers.get(value) if is_inner else None


def kernel(node: Node) -> str:
    height, width = node.attributes["kernel_size"]
    stride = node.attributes["stride"][0]
    return f"{height}x{width}" + (f"/{stride}" if stride > 1 else "")


def graphs() -> dict[str, Graph]:
    """By the names of MODELS."""
    whole, lite = (canonical_graphs(preset) for preset in MODELS[:2])
    return {MODELS[0]: whole["unet"], MODELS[1]: lite["unet"], **{name: whole[name] for name in MODELS[2:]}}


def text() -> str:
    """The file."""
    counts: dict[str, Counter[str]] = {}
    macs: dict[str, int] = {}
    for model, graph in graphs().items():
        for layer, layer_macs in Walk(graph).layers():
            counts.setdefault(layer, Counter())[model] += 1
            macs[layer] = layer_macs
    totals = {model: sum(macs[layer] * counts[layer][model] for layer in counts) for model in MODELS}

    def share(layer: str) -> float:
        return max(macs[layer] * counts[layer][model] / totals[model] for model in MODELS)

    kept = [layer for layer in counts if macs[layer] == 0 or share(layer) >= LEAST_SHARE]
    kept.sort(key=lambda layer: (-macs[layer] * sum(counts[layer].values()), layer))
    rows = [" ".join(f"{counts[layer][model]:3d}" for model in MODELS) + f"  {layer}" for layer in kept]
    return "\n".join([HEAD, *rows]) + "\n"


if __name__ == "__main__":
    print(text(), end="")
