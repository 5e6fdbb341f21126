"""Files that must be rejected, each with a twin that must be accepted, so that a reader cannot win by refusing everything.

A row changes the tiny bundle, or with `int8` its twin of int8 layers, at one stage (mini_bundle.py): `bad` makes the wrong file, `good` its sound neighbour
(None: the unchanged bundle). `says` are words that the message must contain: the field and what is wrong.
"""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mini_bundle import Pairs, Tensor, crc32c, tiny_bundle, vector, weight

BUNDLE, VERSION = 3, 4


@dataclass(frozen=True)
class Row:
    name: str
    stage: str
    bad: Callable[[Any], Any]
    says: tuple[str, ...]
    good: Callable[[Any], Any] | None = None
    status: int = BUNDLE
    int8: bool = False

    def file(self, sound: bool) -> bytes:
        change = self.good if sound else self.bad
        bundle = copy.deepcopy(BASE_INT8 if self.int8 else BASE)
        if change is None:
            return bundle.to_bytes()
        if self.stage == "bundle":
            change(bundle)
            return bundle.to_bytes()
        return bundle.change(self.stage, change).to_bytes()


BASE = tiny_bundle()
BASE_INT8 = tiny_bundle(int8=True)
SOUND = BASE.to_bytes()
DATA = 8 + struct.unpack("<Q", SOUND[:8])[0]    # where the data begin
FIRST = list(BASE.tensors)[0]
LAST = list(BASE.tensors)[-1]


def resealed(data):
    """The file with the CRC that its header now has."""
    begin = 8 + struct.unpack("<Q", data[:8])[0]
    return data[:begin] + struct.pack("<I", crc32c(data[:begin])) + data[begin + 4 :]


def length(value):
    return lambda data: struct.pack("<Q", value(len(data)) if callable(value) else value) + data[8:]


def header(change):
    """Changes the bytes of the header; its length stays a multiple of 64."""

    def apply(data):
        text = change(data[8:DATA])
        text += b" " * (-(len(text) + 8) % 64)
        return resealed(struct.pack("<Q", len(text)) + text + data[DATA:])

    return apply


def entry(name, **changes):
    """Changes keys of one header entry; None removes, a function gets the old value."""

    def apply(entries):
        result = []
        for key, value in entries:
            if key == name:
                value = dict(value)
                for field, new in changes.items():
                    if new is None:
                        value.pop(field)
                    else:
                        value[field] = new(value[field]) if callable(new) else new
            result.append((key, value))
        return result

    return apply


def doc(path, value):
    """Sets one place of the document: keys and indices joined by dots; None removes, a function gets the old value."""

    def apply(document):
        place = document
        *way, last = [int(k) if k.lstrip("-").isdigit() else k for k in path.split("/")]
        for key in way:
            place = place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value(place[last]) if callable(value) else value
        return document

    return apply


def node(component, name, change):
    """Changes one node, given as a dictionary."""

    def apply(document):
        graph = document["components"][component]
        found = next(n for n in graph["nodes"] if n["name"] == name)
        change(found, graph)
        return document

    return apply


def attribute(component, name, **changes):
    def change(found, _graph):
        for key, value in changes.items():
            if value is None:
                del found["attributes"][key]
            else:
                found["attributes"][key] = value

    return node(component, name, change)


def set_input(component, name, index, value):
    def change(found, graph):
        found["inputs"][index] = value(graph) if callable(value) else value

    return node(component, name, change)


def number_of(graph, name):
    names = [i["name"] for i in graph["inputs"]] + graph["weights"] + [n["name"] for n in graph["nodes"]]
    return names.index(name)


def tensor(name, **changes):
    def change(bundle):
        for key, value in changes.items():
            old = getattr(bundle.tensors[name], key)
            setattr(bundle.tensors[name], key, value(old) if callable(value) else value)

    return change


def patched(position, data):
    return lambda old: old[:position] + data + old[position + len(data) :]


def with_weight(bundle, kind, logical, use):
    """One more weight of the unet, which `use(graph, number)` may use."""
    graph = bundle.document["components"]["unet"]
    number = len(graph["inputs"]) + len(graph["weights"])
    for entry_ in graph["nodes"]:
        entry_["inputs"] = [i + (i >= number) for i in entry_["inputs"]]
    for output in graph["outputs"]:
        output["value"] += output["value"] >= number
    graph["weights"].append("extra")
    bundle.tensors["unet/extra"] = weight(kind, logical)
    use(graph, number)


def big_header(total):
    """A sound header stretched with blanks to `total` bytes, the length included."""
    return lambda data: resealed(struct.pack("<Q", total - 8) + data[8:DATA] + b" " * (total - DATA) + data[DATA:])


def cut(size):
    return lambda data: data[:size]


def nested(depth):
    return lambda text: text[:-1] + b',"deep":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


def header_text(change):
    """Changes the JSON text of the header, blanks not included."""
    return header(lambda text: change(text.rstrip(b" ")))


CONTAINER = [
    Row("empty file", "file", cut(0), ("empty",)),
    Row("1 byte", "file", cut(1), ("1 bytes", "header length")),
    Row("7 bytes", "file", cut(7), ("7 bytes", "header length")),
    Row("8 bytes", "file", cut(8), ("truncated", "header length")),
    Row("length 0", "file", length(0), ("header length 0",)),
    Row("length 1", "file", length(1), ("header length 1",)),
    Row("length = file", "file", length(lambda n: n), ("truncated", "header length")),
    Row("length = file - 7", "file", length(lambda n: n - 7), ("truncated", "header length")),
    Row("length > file", "file", length(lambda n: n + 56), ("truncated", "header length")),
    Row("length 2^31", "file", length(2**31), ("header length", "4 MiB")),
    Row("length 2^32", "file", length(2**32), ("header length", "4 MiB")),
    Row("length 2^63", "file", length(2**63), ("header length", "4 MiB")),
    Row("length 2^64-1", "file", length(2**64 - 1), ("header length", "4 MiB")),
    Row("length > 4 MiB", "file", big_header(2**22 + 64), ("header length", "4 MiB"), big_header(2**22)),
    Row("bad UTF-8", "file", header(lambda t: t.replace(b"made for tests", b"made for \xc3\x28")), ("header", "UTF-8"),
        header(lambda t: t.replace(b"made for tests", "gem\u00e4\u00df \U0001f600".encode()))),
    Row("overlong UTF-8", "file", header(lambda t: t.replace(b"made for tests", b"\xc0\xaf")), ("header", "UTF-8")),
    Row("surrogate in UTF-8", "file", header(lambda t: t.replace(b"made for tests", b"\xed\xa0\x80")), ("header", "UTF-8")),
    Row("half a surrogate pair", "document_text", lambda t: t.replace("made for tests", "\\ud83d"), ("surrogate",),
        lambda t: t.replace("made for tests", "\\ud83d\\ude00")),
    Row("NUL in a string", "document_text", lambda t: t.replace("made for tests", "\\u0000"), ("NUL",),
        lambda t: t.replace("made for tests", "\\u0001")),
    Row("control character", "document_text", lambda t: t.replace("made for tests", "\x01"), ("control character",)),
    Row("byte order mark", "file", header(lambda t: b"\xef\xbb\xbf" + t), ("header", "begin with {")),
    Row("leading blank", "file", header(lambda t: b" " + t), ("header", "begin with {"), header_text(lambda t: t[:1] + b" " + t[1:])),
    Row("trailing non-blank", "file", header_text(lambda t: t + b" x"), ("header", "end with }"), header_text(lambda t: t + b"  ")),
    Row("trailing line feed", "file", header_text(lambda t: t + b"\n"), ("header", "end with }")),
    Row("not JSON", "file", header_text(lambda t: b"{" + t), ("header", "byte")),
    Row("array root", "file", header(lambda t: b"[" + t.rstrip() + b"]"), ("header", "begin with {")),
    Row("two documents", "file", header_text(lambda t: t + b"{}"), ("header", "after the end")),
    Row("depth 17", "file", header_text(nested(17)), ("header", "nested too deeply")),
    Row("depth 10,000", "file", header_text(nested(10_000)), ("header", "nested too deeply")),
    Row("LFS pointer", "file", lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", ("Git LFS", "git lfs pull")),
    Row("HTML page", "file", lambda _: b"\n<!DOCTYPE html><html><head><title>404</title></head></html>", ("HTML",)),
    Row("gzip", "file", lambda _: b"\x1f\x8b\x08" + bytes(100), ("gzip",)),
    Row("checkpoint", "file", lambda _: b"PK\x03\x04" + bytes(100), ("PyTorch", "mdrt convert")),
    Row("GGUF", "file", lambda _: b"GGUF" + bytes(100), ("GGUF",)),
]  # fmt: skip


def named(name):
    return lambda entries: [(name if key == FIRST else key, value) for key, value in entries]


def end_of(entries, name):
    return dict(entries)[name]["data_offsets"][1]


def shifted(by):
    """Everything from the first weight on is stated `by` bytes further."""

    def apply(entries):
        return [
            (k, {**v, "data_offsets": [o + by for o in v["data_offsets"]]} if k not in ("__metadata__", "header_crc32c") else v)
            for k, v in entries
        ]

    return apply


ENTRIES = [
    Row("duplicate tensor", "entries", lambda e: [*e, e[2]], (FIRST, "twice")),
    Row("duplicate inner key", "entries",
        lambda e: [(k, Pairs([*v.items(), ("dtype", v["dtype"])]) if k == FIRST else v) for k, v in e], ("dtype", "twice")),
    Row("duplicate metadata key", "entries", lambda e: [("__metadata__", Pairs([*e[0][1].items()] * 2)), *e[1:]], ("mdrt", "twice")),
    Row("duplicate metadata", "entries", lambda e: [*e, e[0]], ("__metadata__", "twice")),
    Row("unknown metadata key", "entries", lambda e: [("__metadata__", {**e[0][1], "format": "pt"}), *e[1:]], ("__metadata__", "format")),
    Row("metadata is no string", "entries", lambda e: [("__metadata__", {"mdrt": {}}), *e[1:]], ("__metadata__", "mdrt", "string")),
    Row("no metadata", "entries", lambda e: e[1:], ("__metadata__", "missing")),
    Row("unknown inner key", "entries", entry(FIRST, offset=0), (FIRST, "unknown key 'offset'")),
    Row("no dtype", "entries", entry(FIRST, dtype=None), (FIRST, "dtype is missing")),
    Row("no shape", "entries", entry(FIRST, shape=None), (FIRST, "shape is missing")),
    Row("no data_offsets", "entries", entry(FIRST, data_offsets=None), (FIRST, "data_offsets is missing")),
    Row("one offset", "entries", entry(FIRST, data_offsets=lambda o: o[:1]), (FIRST, "data_offsets")),
    Row("three offsets", "entries", entry(FIRST, data_offsets=lambda o: [*o, o[1]]), (FIRST, "data_offsets")),
    Row("begin > end", "entries", entry(FIRST, data_offsets=lambda o: o[::-1]), (FIRST, "data_offsets")),
    Row("begin -1", "entries", entry(FIRST, data_offsets=lambda o: [-1, o[1]]), (FIRST, "data_offsets")),
    Row("offset is a float", "entries", entry(FIRST, data_offsets=lambda o: [o[0], b"1e3"]), (FIRST, "data_offsets", "integers")),
    Row("offset 2^63", "entries", entry(FIRST, data_offsets=lambda o: [o[0], 2**63]), (FIRST, "data_offsets")),
    Row("offset 2^63 - 64", "entries", entry(FIRST, data_offsets=lambda o: [o[0], 2**63 - 64]), (FIRST, "data_offsets")),
    Row("beyond the file", "bundle", lambda b: b.change("file", cut(len(SOUND) - 64)), ("truncated", "data_offsets")),
    Row("overlap", "entries", entry(list(BASE.tensors)[1], data_offsets=lambda o: [o[0] - 64, o[1] - 64]),
        (list(BASE.tensors)[1], "data_offsets")),
    Row("same range", "entries", lambda e: entry(list(BASE.tensors)[2], data_offsets=dict(e)[list(BASE.tensors)[1]]["data_offsets"])(e),
        (list(BASE.tensors)[2], "data_offsets")),
    Row("hole", "entries", shifted(64), (FIRST, "data_offsets"), shifted(0)),
    Row("order is not the header's", "entries", lambda e: [*e[:2], e[3], e[2], *e[4:]], ("data_offsets",)),
    Row("trailing byte", "file", lambda data: data + b"\0", ("data_offsets", "1 bytes before the end")),
    Row("one byte short", "file", lambda data: data[:-1], ("truncated", "data_offsets")),
    Row("unknown dtype", "entries", entry(FIRST, dtype="BF16"), (FIRST, "dtype", "BF16")),
    Row("dtype against length", "entries", entry(FIRST, dtype="F16"), (FIRST, "data_offsets")),
    Row("dimension 0", "entries", entry(FIRST, shape=lambda s: [0, *s]), (FIRST, "shape")),
    Row("dimension -1", "entries", entry(FIRST, shape=lambda s: [-1, *s]), (FIRST, "shape")),
    Row("dimension 2.0", "entries", entry(FIRST, shape=lambda s: [b"2.0", *s]), (FIRST, "shape", "integers")),
    Row("dimension true", "entries", entry(FIRST, shape=lambda s: [True, *s]), (FIRST, "shape", "integers")),
    Row("shape is empty", "entries", entry(FIRST, shape=[]), (FIRST, "shape")),
    Row("2^32 x 2^32", "entries", entry(FIRST, shape=[2**32, 2**32]), (FIRST, "shape", "63 bits")),
    Row("2^62 x 4 x 2", "entries", entry(FIRST, shape=[2**62, 4, 2]), (FIRST, "shape", "63 bits")),
    Row("2^60 elements of 16 bytes too many", "entries", entry(FIRST, shape=[2**61, 1]), (FIRST, "shape", "63 bits")),
    Row("rank 7", "entries", entry(FIRST, shape=lambda s: [1] * (7 - len(s)) + s), (FIRST, "shape", "6 dimensions")),
    Row("rank 1000", "entries", entry(FIRST, shape=lambda s: [1] * 998 + s), (FIRST, "shape", "6 dimensions")),
    Row("data begin misaligned", "file",
        lambda d: resealed(struct.pack("<Q", DATA - 8 + 8) + d[8:DATA] + b" " * 8 + d[DATA:]), ("header length", "multiple of 64"),
        lambda d: resealed(struct.pack("<Q", DATA - 8 + 64) + d[8:DATA] + b" " * 64 + d[DATA:])),
    Row("tensor of 32 bytes", "bundle", lambda b: tensor("tokenizer/merges", data=bytes(32), shape=[4, 2])(b), ("tokenizer/merges", "64")),
    Row("name with NUL", "entries", named("unet/a\0b"), ("NUL",)),
    Row("empty name", "entries", named(""), ("tensor name",)),
    Row("name ../", "entries", named("../../etc/passwd"), ("tensor name",)),
    Row("name with an empty part", "entries", named("unet//a"), ("tensor name",)),
    Row("name with a blank", "entries", named("unet/a b"), ("tensor name",)),
    Row("name of 300 bytes", "entries", named("unet/" + "a" * 295), ("tensor name",)),
    Row("tensor without owner", "bundle", lambda b: b.tensors.update(stray=Tensor("U8", [64], bytes(64))), ("stray", "belongs to nothing")),
    Row("16,385 tensors", "entries", lambda e: e + [(f"t{i}", e[1][1]) for i in range(16385)], ("16384 tensors",)),
    Row("header_crc32c is not first", "entries", lambda e: [e[0], *e[2:]], ("data_offsets",)),
    Row("header_crc32c is called otherwise", "entries", lambda e: [e[0], ("header_crc", e[1][1]), *e[2:]], ("header_crc32c", "first")),
    Row("header_crc32c has another shape", "entries", entry("header_crc32c", shape=[32, 2]), ("header_crc32c", "[64]")),
    Row("header_crc32c is not padded with zeros", "file", patched(DATA + 40, b"x"), ("header_crc32c", "zero")),
]  # fmt: skip


def unused_weight(bundle):
    with_weight(bundle, "vector", (16,), lambda graph, number: None)


def used_weight(bundle):
    def use(graph, number):
        conv = next(n for n in graph["nodes"] if n["name"] == "conv_in")
        conv["inputs"].append(number)

    with_weight(bundle, "vector", (16,), use)


def panel_as_bias(bundle):
    with_weight(bundle, "panel", (16, 16), lambda g, n: next(x for x in g["nodes"] if x["name"] == "conv_in")["inputs"].append(n))


def duplicate_value(document):
    document["components"]["unet"]["nodes"][-1]["name"] = "gate"
    return document


def chain(document, count):
    """A vae_encoder of `count` nodes."""
    graph = document["components"]["vae_encoder"]
    first = len(graph["inputs"]) + len(graph["weights"])
    for i in range(1, count):
        graph["nodes"].append({"op": "silu", "name": f"n{i}", "inputs": [first + i - 1], "attributes": {}})
    return document


def wider_context(document):
    document["components"]["unet"]["inputs"][2]["shape"][2] = 32
    return document


GRAPH = [
    Row("unknown op", "document", node("unet", "gelu", lambda n, g: n.update(op="tile")), ("nodes[", "op", "'tile'"),
        node("unet", "gelu", lambda n, g: n.update(op="silu"))),
    Row("unknown attribute", "document", attribute("unet", "conv_in", dilation=1), ("conv_in", "attribute dilation", "unknown")),
    Row("missing attribute", "document", attribute("unet", "conv_in", pads=None), ("conv_in", "attribute", "pads", "missing")),
    Row("attribute of the wrong type", "document", attribute("unet", "conv_in", stride="1"), ("conv_in", "stride", "list")),
    Row("too few integers", "document", attribute("unet", "conv_in", pads=[1, 1]), ("conv_in", "pads", "4 integers")),
    Row("a float for an integer", "document", attribute("unet", "norm", num_groups=4.0), ("norm", "num_groups", "integer")),
    Row("unknown word", "document", attribute("unet", "gate", act_fn="relu"), ("gate", "act_fn", "'relu'"), attribute("unet", "gate", act_fn="gelu")),
    Row("eps 0", "document", attribute("unet", "norm", eps=0), ("norm", "eps", "within"), attribute("unet", "norm", eps=1)),
    Row("eps too large for a double", "document_text", lambda t: t.replace("1e-05", "1e999"), ("double",), lambda t: t.replace("1e-05", "1e-6")),
    Row("input index -1", "document", set_input("unet", "gelu", 0, -1), ("gelu", "input 0", "value -1")),
    Row("input index = count", "document",
        set_input("unet", "gelu", 0, lambda g: len(g["inputs"] + g["weights"] + g["nodes"])), ("gelu", "input 0", "value")),
    Row("input index 2^31", "document", set_input("unet", "gelu", 0, 2**31), ("nodes[", "inputs", "numbers")),
    Row("forward reference", "document", set_input("unet", "gelu", 0, lambda g: number_of(g, "up")), ("gelu", "input 0", "value"),
        set_input("unet", "gelu", 0, lambda g: number_of(g, "depthwise"))),
    Row("self reference", "document", set_input("unet", "gelu", 0, lambda g: number_of(g, "gelu")), ("gelu", "input 0", "value")),
    Row("two values of one name", "document", duplicate_value, ("two values", "'gate'")),
    Row("too few inputs", "document", node("unet", "conv_in", lambda n, g: n["inputs"].pop()), ("conv_in", "1 inputs")),
    Row("too many inputs", "document", node("unet", "gelu", lambda n, g: n["inputs"].append(n["inputs"][0])), ("gelu", "2 inputs")),
    Row("concat of one", "document", node("unet", "skip", lambda n, g: n["inputs"].pop()), ("skip", "1 inputs"),
        node("unet", "skip", lambda n, g: n["inputs"].append(n["inputs"][0]) or n["inputs"].pop())),
    Row("concat of 65", "document", node("unet", "skip", lambda n, g: n.update(inputs=n["inputs"][:1] * 65)), ("nodes[", "inputs", "64")),
    Row("8193 nodes", "document", lambda d: chain(d, 8193), ("nodes", "8192"), lambda d: chain(d, 8192)),
    Row("weight for an activation", "document", set_input("unet", "gelu", 0, 3), ("gelu", "must not be a weight")),
    Row("activation for a weight", "document", set_input("unet", "conv_in", 1, 0), ("conv_in", "must be a weight")),
    Row("ids for numbers", "document", set_input("text_encoder", "norm", 0, 0), ("norm", "fp32")),
    Row("numbers for ids", "document", doc("components/text_encoder/inputs/0/dtype", "fp32"), ("input_ids",)),
    Row("unused weight", "bundle", unused_weight, ("extra", "used by no node"), used_weight),
    Row("missing weight", "bundle", lambda b: b.tensors.pop("unet/conv_in.weight"), ("weights[", "no tensor", "conv_in.weight")),
    Row("weight listed twice", "document", lambda d: doc("components/unet/weights/1", d["components"]["unet"]["weights"][0])(d),
        ("weights[1]", "already")),
    Row("weight of the wrong shape", "document", attribute("unet", "conv_out", out_channels=17), ("conv_out", "stored shape", "demand")),
    Row("weight of the wrong kind", "bundle", panel_as_bias, ("conv_in", "extra", "stored shape"), used_weight),
    Row("norm vector as fp16", "bundle", lambda b: b.tensors.update({"unet/norm.weight": weight("vector", (32,), "F16")}),
        ("norm.weight", "fp16")),
    Row("kernel larger than the input", "document", lambda d: doc("components/vae_encoder/inputs/0/shape", [1, 8, 1, 3])(d),
        ("conv_in", "kernel_size", "width"), doc("components/vae_encoder/inputs/0/shape", ["batch", 8, 2, 3])),
    Row("stride 0", "document", attribute("unet", "conv_in", stride=[0, 1]), ("conv_in", "stride", "within")),
    Row("pads 2^63", "document", attribute("unet", "conv_in", pads=[2**63, 1, 1, 1]), ("conv_in", "pads", "integers")),
    Row("pads 2^63 - 1", "document", attribute("unet", "conv_in", pads=[2**63 - 1, 1, 1, 1]), ("conv_in", "pads", "within")),
    Row("groups 0", "document", attribute("unet", "norm", num_groups=0), ("norm", "num_groups", "within"), attribute("unet", "norm", num_groups=16)),
    Row("groups do not divide", "document", attribute("unet", "norm", num_groups=3), ("norm", "num_groups 3"), attribute("unet", "norm", num_groups=8)),
    Row("heads do not divide", "document", attribute("unet", "cross", num_heads=3), ("cross", "num_heads 3"), attribute("unet", "cross", num_heads=16)),
    Row("odd embedding", "document", attribute("unet", "time", embedding_dim=15), ("time", "embedding_dim 15")),
    Row("odd gate", "document", attribute("unet", "gate", act_fn="silu", gate=1), ("gate", "unknown")),
    Row("channels do not match", "document", wider_context, ("cross", "channels")),
    Row("concat of different ranks", "document", set_input("unet", "skip", 0, lambda g: number_of(g, "time.act")), ("skip", "dimensions")),
    Row("add of different channels", "document", set_input("unet", "with_time", 1, 0), ("with_time", "dimension")),
    Row("resize of a sequence", "document", set_input("unet", "up", 1, 2), ("up", "like", "dimensions")),
    Row("causal cross-attention", "document", lambda d: attribute("unet", "cross", is_causal="true")(
        doc("components/unet/inputs/2/shape", ["batch", 7, 16])(doc("components/unet/inputs/0/shape", ["batch", 4, 4, 4])(d))),
        ("cross", "is_causal"),
        lambda d: doc("components/unet/inputs/2/shape", ["batch", 7, 16])(doc("components/unet/inputs/0/shape", ["batch", 4, 4, 4])(d))),
    Row("output is no node", "document", doc("components/unet/outputs/0/value", 0), ("out_sample", "no node")),
    Row("two outputs of one name", "document", doc("components/unet/outputs", lambda o: o * 2), ("two outputs", "out_sample")),
    Row("no outputs", "document", doc("components/unet/outputs", []), ("unet", "outputs is empty")),
    Row("no inputs", "document", doc("components/vae_encoder/inputs", []), ("vae_encoder", "inputs is empty")),
    Row("symbolic channels", "document", doc("components/unet/inputs/0/shape/3", "channels"), ("sample", "channels", "number")),
    Row("dimension 0 of an input", "document", doc("components/unet/inputs/0/shape/1", 0), ("inputs[0]", "shape")),
    Row("bad symbol", "document", doc("components/unet/inputs/0/shape/1", "Height!"), ("inputs[0]", "shape"), doc("components/unet/inputs/0/shape/1", "h")),
    Row("five dimensions", "document", doc("components/unet/inputs/0/shape", [1, 1, 1, 1, 4]), ("inputs[0]", "shape")),
    Row("bad dtype of an input", "document", doc("components/unet/inputs/0/dtype", "fp16"), ("inputs[0]", "dtype")),
    Row("bad component name", "document", lambda d: {**d, "components": {**d["components"], "Adapter-1": d["components"]["unet"]}}, ("components", "Adapter-1")),
    Row("more than 2^40 elements", "document", lambda d: doc("components/vae_decoder/inputs/0/shape", ["batch", 2**19, 2**20, 4])(d),
        ("up", "2^40"), doc("components/vae_decoder/inputs/0/shape", ["batch", 2**10, 2**10, 4])),
]  # fmt: skip


def schedule_value(column, value, row=0):
    return tensor("schedules/4", data=patched(row * 128 + column * 8, struct.pack("<d", value)))


def merges_value(index, value):
    return tensor("tokenizer/merges", data=patched(index * 4, struct.pack("<i", value)))


def vocabulary(change):
    def apply(bundle):
        text = change(bundle.tensors["tokenizer/vocabulary"].data.rstrip(b"\0"))
        bundle.tensors["tokenizer/vocabulary"] = Tensor("U8", [len(text)], text)

    return apply


def schedules_differ(bundle):
    bundle.document["pipeline"]["schedules"][0]["num_inference_steps"] = 4


DOCUMENT = [
    Row("version 0", "document", doc("format", [0, 9]), ("format", "[0, 9]")),
    Row("future major", "document", doc("format", [2, 0]), ("format", "[2, 0]", "install"), status=VERSION),
    Row("future minor with unknown keys", "document", lambda d: {**d, "format": [1, 3], "adapters": {}}, ("format", "[1, 3]", "install"), status=VERSION),
    Row("format is a float", "document", doc("format", b"[1, 0.0]"), ("format", "integers")),
    Row("format has three numbers", "document", doc("format", [1, 0, 0]), ("format", "integers")),
    Row("no format", "document", doc("format", None), ("format is missing",)),
    Row("document is no object", "document_text", lambda t: "[]", ("__metadata__.mdrt", "object")),
    Row("document is not JSON", "document_text", lambda t: t[:-1], ("__metadata__.mdrt", "byte")),
    Row("document twice as deep as allowed", "document", doc("pipeline/scheduler_config/deep", json.loads("[" * 32 + "]" * 32)), ("__metadata__.mdrt", "nested too deeply")),
    Row("unknown key", "document", lambda d: {**d, "extra": 1}, ("unknown key 'extra'",)),
    Row("no components", "document", doc("components", {}), ("components",)),
    Row("no provenance", "document", doc("provenance", None), ("provenance is missing",)),
    Row("provenance is no string", "document", doc("provenance/license", b"null"), ("provenance", "license", "string")),
    Row("checksum missing", "document", lambda d: {**d, "checksums": {}}, ("checksums",)),
    Row("checksum of another tensor", "bundle", lambda b: b.change("document_text", lambda t: t.replace(f'"{FIRST}":', '"unet/nothing":')), ("checksums", "unet/nothing")),
    Row("checksum in capitals", "bundle", lambda b: b.change("document_text", lambda t: t[:-11] + "ABCDEF01" + t[-3:]), ("checksums", "lower-case")),
    Row("pipeline without tokenizer", "bundle",
        lambda b: (b.document.pop("tokenizer"), b.tensors.pop("tokenizer/vocabulary"), b.tensors.pop("tokenizer/merges")), ("tokenizer", "missing")),
    Row("pipeline without unet", "bundle",
        lambda b: (b.document["components"].pop("unet"), [b.tensors.pop(n) for n in list(b.tensors) if n.startswith("unet/")]), ("unet is missing",),
        lambda b: (b.document["components"].pop("vae_encoder"), [b.tensors.pop(n) for n in list(b.tensors) if n.startswith("vae_encoder/")])),
    Row("unet input called otherwise", "document", doc("components/unet/inputs/1/name", "t"), ("unet", "'t'", "timestep")),
    Row("unet output called otherwise", "document", doc("components/unet/outputs/0/name", "sample_out"), ("unet", "out_sample")),
    Row("fourth unet input", "document", lambda d: fourth_input(d), ("unet", "inputs", "more")),
    Row("latent channels differ", "document", doc("pipeline/latent_channels", 8), ("unet", "sample", "4 channels")),
    Row("decoder makes no RGB", "bundle", lambda b: rgba(b), ("vae_decoder", "sample", "4 channels")),
    Row("encoder parameters differ", "bundle", lambda b: narrow_encoder(b), ("vae_encoder", "latent_parameters", "7 channels")),
    Row("width is no multiple", "document", doc("pipeline/width", 9), ("pipeline", "width", "vae_scale_factor"), doc("pipeline/width", 10)),
    Row("width 0", "document", doc("pipeline/width", 0), ("pipeline", "width")),
    Row("height is a float", "document", doc("pipeline/height", 8.0), ("pipeline", "height", "integer")),
    Row("scaling_factor 0", "document", doc("pipeline/scaling_factor", 0), ("pipeline", "scaling_factor"), doc("pipeline/scaling_factor", 1)),
    Row("unknown noise", "document", doc("pipeline/noise", "mt19937"), ("pipeline", "noise", "philox")),
    Row("scheduler_config is not flat", "document", doc("pipeline/scheduler_config/trained_betas", [0.1]), ("scheduler_config", "trained_betas"),
        doc("pipeline/scheduler_config/trained_betas", b"null")),
    Row("num_train_timesteps 0", "document", doc("pipeline/scheduler_config/num_train_timesteps", 0), ("num_train_timesteps",)),
    Row("no schedules", "document", doc("pipeline/schedules", []), ("schedules", "1 to 1000")),
    Row("0 steps", "document", doc("pipeline/schedules/0/num_inference_steps", 0), ("schedules[0]", "num_inference_steps")),
    Row("1001 steps", "document", doc("pipeline/schedules/0/num_inference_steps", 1001), ("schedules[0]", "num_inference_steps")),
    Row("schedule stated twice", "bundle", schedules_differ, ("schedules[1]", "schedules/4")),
    Row("bad scheduler name", "document", doc("pipeline/schedules/0/scheduler", "DDIM scheduler"), ("schedules[0]", "scheduler"),
        doc("pipeline/schedules/0/scheduler", "dpmpp_2m")),
    Row("guidance -1", "document", doc("pipeline/schedules/0/guidance_scale", -1), ("schedules[0]", "guidance_scale"), doc("pipeline/schedules/0/guidance_scale", 0)),
    Row("guidance is NaN", "document", doc("pipeline/schedules/0/guidance_scale", b"NaN"), ("byte",)),
    Row("init_noise_sigma 0", "document", doc("pipeline/schedules/0/init_noise_sigma", 0), ("schedules[0]", "init_noise_sigma")),
    Row("rows do not fit the steps", "bundle", lambda b: b.tensors.update({"schedules/4": BASE.tensors["schedules/1"]}), ("schedules/4", "rows"),
        lambda b: tensor("schedules/4", data=lambda d: d + d[:384], shape=[7, 16])(b)),
    Row("15 columns", "bundle", tensor("schedules/4", shape=[8, 8]), ("schedules/4", "F64")),
    Row("NaN in a schedule", "bundle", schedule_value(1, float("nan")), ("schedules/4", "row 0", "finite")),
    Row("timestep -1", "bundle", schedule_value(0, -1.0, row=3), ("schedules/4", "row 3", "t "), schedule_value(0, 0.0, row=3)),
    Row("timestep beyond training", "bundle", schedule_value(0, 1001.0), ("schedules/4", "row 0", "t "), schedule_value(0, 1000.0)),
    Row("clip -1", "bundle", schedule_value(3, -1.0), ("schedules/4", "clip"), schedule_value(3, 0.0)),
    Row("keep 0.5", "bundle", schedule_value(11, 0.5), ("schedules/4", "keep"), schedule_value(11, 0.0)),
    Row("column 15 is not zero", "bundle", schedule_value(15, 1.0), ("schedules/4", "zero")),
    Row("vocab_size differs", "document", doc("tokenizer/vocab_size", 9), ("tokenizer/vocabulary", "8 tokens", "vocab_size")),
    Row("token id = vocab_size", "document", doc("tokenizer/unk_token_id", 8), ("tokenizer", "unk_token_id"), doc("tokenizer/unk_token_id", 7)),
    Row("token id -1", "document", doc("tokenizer/pad_token_id", -1), ("tokenizer", "pad_token_id")),
    Row("model_max_length 0", "document", doc("tokenizer/model_max_length", 0), ("tokenizer", "model_max_length")),
    Row("vocabulary without end", "bundle", vocabulary(lambda t: t[:-1] + b"x" * (65 - len(t) % 64)), ("tokenizer/vocabulary", "line feed")),
    Row("vocabulary with a zero inside", "bundle", tensor("tokenizer/vocabulary", data=lambda d: d.replace(b"ab</w>\n", b"ab\0/w>\n")), ("tokenizer/vocabulary", "zero byte")),
    Row("vocabulary of zeros", "bundle", tensor("tokenizer/vocabulary", data=lambda d: bytes(len(d))), ("tokenizer/vocabulary",)),
    Row("vocabulary with too much padding", "bundle", tensor("tokenizer/vocabulary", data=lambda d: d + bytes(64), shape=lambda s: [s[0] + 64]), ("tokenizer/vocabulary", "zeros")),
    Row("merge names no token", "bundle", merges_value(1, 8), ("tokenizer/merges", "merge 0", "token 8"), merges_value(1, 7)),
    Row("merge names token -1", "bundle", merges_value(0, -1), ("tokenizer/merges", "merge 0", "token -1")),
    Row("num_merges differs", "document", doc("tokenizer/num_merges", 9), ("tokenizer/merges", "num_merges")),
    Row("merges are not padded with zeros", "bundle", merges_value(15, 1), ("tokenizer/merges", "padding")),
    Row("merges without number", "document", doc("tokenizer/num_merges", 0), ("tokenizer/merges", "belongs to nothing"),
        lambda d: d),
]  # fmt: skip


def fourth_input(document):
    graph = document["components"]["unet"]
    for entry_ in graph["nodes"]:
        entry_["inputs"] = [i + (i >= 3) for i in entry_["inputs"]]
    graph["outputs"][0]["value"] += 1
    graph["inputs"].append({"name": "class_labels", "dtype": "int32", "shape": ["batch"]})
    return document


def rgba(bundle):
    found = next(n for n in bundle.document["components"]["vae_decoder"]["nodes"] if n["name"] == "conv_out")
    found["attributes"]["out_channels"] = 4


def narrow_encoder(bundle):
    found = next(n for n in bundle.document["components"]["vae_encoder"]["nodes"] if n["name"] == "conv_in")
    found["attributes"]["out_channels"] = 7


def first_inputs(component, name, count):
    """The node keeps its first inputs only."""
    return node(component, name, lambda n, g: n.update(inputs=n["inputs"][:count]))


def replaced(name, stored):
    return lambda bundle: bundle.tensors.update({name: stored})


def entry_of(name, index, value, code="f"):
    """One number of a stored vector."""
    return tensor(name, data=patched(index * 4, struct.pack("<" + code, value)))


def int8_row(name, stage, bad, says, good=None):
    return Row(f"int8: {name}", stage, bad, says, good, int8=True)


SCALE, SUM, ZERO_POINT = "unet/conv_in.weight_scale", "unet/conv_in.weight_sum", "unet/conv_in.input_zero_point"
SMALLEST, LARGEST = 2.0**-126, (2 - 2.0**-23) * 2.0**127  # normal numbers of float32

INT8 = [
    int8_row("format 1.0", "document", doc("format", [1, 0]), ("format", "[1, 0]", "conv_out", "vae_decoder", "[1, 2]")),
    int8_row("format 1.1", "document", doc("format", [1, 1]), ("format", "[1, 1]", "conv_out", "without weight_sum", "[1, 2]"), doc("format", [1, 2])),
    int8_row("format 1.0 without float inputs", "document", lambda d: doc("components/vae_decoder", None)({**d, "format": [1, 0]}), ("format", "[1, 0]", "embeddings", "[1, 1]")),
    Row("int8: format 1.2 without need", "document", doc("format", [1, 3]), ("format", "[1, 3]"), doc("format", [1, 2]), status=VERSION),
    int8_row("no scale", "document", first_inputs("unet", "conv_in", 3), ("conv_in", "conv_in.weight", "int8", "no weight_scale")),
    int8_row("3x3 without input range", "document", first_inputs("unet", "conv_in", 5), ("conv_in", "input_scale", "missing", "1x1")),
    int8_row("input scale without zero point", "document", first_inputs("unet", "conv_in", 6), ("conv_in", "input_zero_point", "missing")),
    int8_row("1x1 with stride without input range", "document", attribute("unet", "conv_out", stride=[1, 2]), ("conv_out", "input_scale", "stride 1"),
             attribute("unet", "conv_in", stride=[1, 2])),
    int8_row("1x1 with pads without input range", "document", attribute("unet", "conv_out", pads=[0, 0, 0, 1]), ("conv_out", "input_scale", "pads"),
             attribute("unet", "conv_in", pads=[0, 0, 0, 1])),
    int8_row("static linear without zero point", "document", first_inputs("unet", "time.proj", 6), ("time.proj", "input_zero_point", "missing")),
    int8_row("one scale for two tables", "document", first_inputs("text_encoder", "embeddings", 4), ("embeddings", "position_weight_scale", "missing")),
    int8_row("no scales for tables", "document", first_inputs("text_encoder", "embeddings", 3), ("embeddings", "token", "no weight_scale")),
    int8_row("too many inputs", "document", node("unet", "conv_in", lambda n, g: n["inputs"].append(n["inputs"][-1])), ("conv_in", "8 inputs")),
    int8_row("activation for a scale", "document", set_input("unet", "conv_in", 3, 0), ("conv_in", "weight_scale", "must be a weight")),
    int8_row("sums of 65552 products", "document", attribute("unet", "time.proj", in_features=65537), ("time.proj", "65552 products", "65536")),
    int8_row("fp32 panel with scale", "bundle", replaced("unet/conv_in.weight", weight("panel", (16, 4, 3, 3))), ("conv_in.weight", "fp32", "must be int8")),
    int8_row("fp16 panel with scale", "bundle", replaced("text_encoder/fc1.weight", weight("panel", (16, 16), "F16")), ("fc1.weight", "fp16", "must be int8")),
    int8_row("fp32 table with scale", "bundle", replaced("text_encoder/position", weight("table", (6, 16))), ("position", "fp32", "must be int8")),
    int8_row("panel of fp32's shape", "bundle", tensor("unet/conv_in.weight", shape=[1, 144, 16]), ("conv_in.weight", "[1, 144, 16]", "[1, 36, 64]")),
    int8_row("table of fp32's shape", "bundle", replaced("text_encoder/token", Tensor("I8", [8, 32], bytes(256))), ("token", "[8, 32]", "[8, 64]")),
    int8_row("bias as int32", "bundle", tensor("unet/conv_in.bias", dtype="I32"), ("conv_in.bias", "int32", "must be fp32")),
    int8_row("scale as int32", "bundle", tensor(SCALE, dtype="I32"), ("weight_scale", "int32", "must be fp32")),
    int8_row("sum as fp32", "bundle", tensor(SUM, dtype="F32"), ("weight_sum", "fp32", "must be int32")),
    int8_row("zero point as fp32", "bundle", tensor(ZERO_POINT, dtype="F32"), ("input_zero_point", "fp32", "must be int32")),
    int8_row("zero point as int8", "bundle", replaced(ZERO_POINT, Tensor("I8", [64], bytes(64))), ("input_zero_point", "int8", "vector")),
    int8_row("norm vector as int32", "bundle", tensor("unet/norm.weight", dtype="I32"), ("norm.weight", "int32", "must be fp32")),
    int8_row("depthwise weight as int8", "bundle", replaced("unet/depthwise.weight", Tensor("I8", [9, 64], bytes(576))), ("depthwise.weight", "int8", "depthwise")),
    int8_row("scales of another number", "bundle", replaced(SCALE, vector([1.0] * 17)), ("weight_scale", "[32]", "[16]")),
    int8_row("sums of another number", "bundle", replaced(SUM, vector([0] * 17, "I32")), ("weight_sum", "[32]", "[16]")),
    int8_row("two input scales", "bundle", replaced("unet/conv_in.input_scale", vector([1.0] * 17)), ("input_scale", "[32]", "[16]")),
    int8_row("scales of another number of rows", "bundle", replaced("text_encoder/position_scale", vector([1.0] * 17)), ("position_scale", "[32]", "[16]")),
    int8_row("scale 0", "bundle", entry_of(SCALE, 0, 0.0), ("conv_in", "weight_scale", "entry 0", "positive"), entry_of(SCALE, 0, SMALLEST)),
    int8_row("scale -1", "bundle", entry_of(SCALE, 15, -1.0), ("weight_scale", "entry 15", "positive"), entry_of(SCALE, 15, 1.0)),
    int8_row("scale NaN", "bundle", entry_of(SCALE, 3, float("nan")), ("weight_scale", "entry 3", "finite")),
    int8_row("scale infinite", "bundle", entry_of(SCALE, 3, float("inf")), ("weight_scale", "entry 3", "finite"), entry_of(SCALE, 3, LARGEST)),
    int8_row("scale subnormal", "bundle", entry_of(SCALE, 3, SMALLEST / 2), ("weight_scale", "entry 3", "subnormal")),
    int8_row("scale of a dynamic layer 0", "bundle", entry_of("unet/conv_out.weight_scale", 3, 0.0), ("conv_out", "weight_scale", "entry 3")),
    int8_row("scale of a linear layer 0", "bundle", entry_of("text_encoder/fc1.weight_scale", 3, 0.0), ("fc1", "weight_scale", "entry 3")),
    int8_row("scale of a token 0", "bundle", entry_of("text_encoder/token_scale", 7, 0.0), ("embeddings", "token_scale", "entry 7")),
    int8_row("scale of a position NaN", "bundle", entry_of("text_encoder/position_scale", 5, float("nan")), ("embeddings", "position_scale", "entry 5")),
    int8_row("scale of a layer with float inputs 0", "bundle", entry_of("vae_decoder/conv_out.weight_scale", 2, 0.0), ("conv_out", "weight_scale", "entry 2")),
    int8_row("input scale 0", "bundle", entry_of("unet/conv_in.input_scale", 0, 0.0), ("conv_in", "input_scale", "entry 0"), entry_of("unet/conv_in.input_scale", 0, LARGEST)),
    int8_row("input scale NaN", "bundle", entry_of("unet/time.proj.input_scale", 0, float("nan")), ("time.proj", "input_scale", "entry 0")),
    int8_row("input scale subnormal", "bundle", entry_of("unet/conv_in.input_scale", 0, SMALLEST / 4), ("conv_in", "input_scale", "subnormal")),
    int8_row("zero point 128", "bundle", entry_of(ZERO_POINT, 0, 128, "i"), ("conv_in", "input_zero_point", "128", "within"), entry_of(ZERO_POINT, 0, 127, "i")),
    int8_row("zero point -129", "bundle", entry_of(ZERO_POINT, 0, -129, "i"), ("conv_in", "input_zero_point", "-129", "within"), entry_of(ZERO_POINT, 0, -128, "i")),
    int8_row("sum that no weights have", "bundle", entry_of(SUM, 2, 127 * 144 + 1, "i"), ("conv_in", "weight_sum", "18289", "within")),
    int8_row("negative sum that no weights have", "bundle", entry_of(SUM, 2, -(2**31), "i"), ("conv_in", "weight_sum", "-2147483648", "within")),
]  # fmt: skip

ROWS = CONTAINER + ENTRIES + GRAPH + DOCUMENT + INT8
