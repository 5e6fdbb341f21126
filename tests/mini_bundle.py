"""A second, independent writer of docs/format.md in plain Python, for tests that need wrong files made exactly wrong.

`tiny_bundle()` is a complete bundle in which every op occurs at least once. A file is made in stages, and a test may
change what any stage hands to the next:

    document   the JSON document as dictionaries     -> document_text
    entries    [(key, value)] of the header          -> header_text
    header     the bytes after the length, unpadded  -> header bytes
    file       all bytes
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

ALIGNMENT = 64
_DTYPES = {"F32": ("f", 4), "F16": ("e", 2), "I8": ("b", 1), "I32": ("i", 4), "U8": ("B", 1), "F64": ("d", 8)}


def _crc_table():
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC_TABLE = _crc_table()


def crc32c(data, crc=0):
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def r16(value):
    return -(-value // 16) * 16


class Pairs:
    """A JSON object as a list of pairs: keys may repeat."""

    def __init__(self, pairs):
        self.pairs = list(pairs)


def dump(value):
    """JSON text; `Pairs` become objects and `bytes` stand as they are."""
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(k)}:{dump(v)}" for k, v in value.pairs) + "}"
    if isinstance(value, dict):
        return dump(Pairs(value.items()))
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(dump, value)) + "]"
    if isinstance(value, bytes):
        return value.decode()
    return json.dumps(value)


@dataclass
class Tensor:
    dtype: str
    shape: list
    data: bytes

    @classmethod
    def of(cls, dtype, shape, values):
        code, _ = _DTYPES[dtype]
        return cls(dtype, list(shape), struct.pack(f"<{len(values)}{code}", *values))


def _count(shape):
    count = 1
    for size in shape:
        count *= size
    return count


def weight(kind, logical, dtype="F32", seed=1):
    """A stored weight of small deterministic numbers; padding is zero."""
    state = [seed * 2654435761 % 2**32]

    def number():
        state[0] = (state[0] * 1664525 + 1013904223) % 2**32
        return (state[0] / 2**32 - 0.5) * 0.5

    if kind == "panel":
        out, channels = logical[:2]
        taps = _count(logical[2:])
        shape = [r16(out) // 16, taps * r16(channels), 16]
        values = []
        for panel in range(shape[0]):
            for _tap in range(taps):
                for c in range(r16(channels)):
                    for j in range(16):
                        values.append(number() if c < channels and panel * 16 + j < out else 0.0)
    elif kind == "table" and dtype == "I8":
        rows, n = logical
        shape = [rows, -(-n // 64) * 64]
        values = [round(number() * 500) if i < n else 0 for _ in range(rows) for i in range(shape[1])]
    elif kind == "vector":
        shape = [r16(logical[0])]
        values = [number() if i < logical[0] else 0.0 for i in range(shape[0])]
    elif kind == "table":
        rows, n = logical
        shape = [rows, -(-n // 32) * 32]
        values = [number() if i < n else 0.0 for _ in range(rows) for i in range(shape[1])]
    else:
        channels, kh, kw = logical
        shape = [kh * kw, r16(channels)]
        values = [number() if c < channels else 0.0 for _ in range(kh * kw) for c in range(shape[1])]
    return Tensor.of(dtype, shape, values)


def int8_panel(logical, seed=1):
    """Deterministic integers in [N/16][K/4][16][4], and the vector of the sums of columns."""
    out, channels = logical[:2]
    taps = _count(logical[2:])
    depth = taps * r16(channels)
    panels, sums, state = [0] * (r16(out) * depth), [0] * r16(out), seed
    for n in range(out):
        for tap in range(taps):
            for c in range(channels):
                state = (state * 1664525 + 1013904223) % 2**32
                q, k = state // 2**16 % 255 - 127, tap * r16(channels) + c
                panels[n // 16 * 16 * depth + ((k // 4) * 16 + n % 16) * 4 + k % 4] = q
                sums[n] += q
    return Tensor.of("I8", [r16(out) // 16, depth // 4, 64], panels), Tensor.of("I32", [r16(out)], sums)


def vector(values, dtype="F32"):
    return Tensor.of(dtype, [r16(len(values))], [*values, *[0] * (-len(values) % 16)])


class GraphMaker:
    """Builds the document of one component by names."""

    def __init__(self, component):
        self.component = component
        self.inputs, self.weights, self.nodes, self.outputs = [], [], [], []
        self.tensors = {}

    def input(self, name, shape, dtype="fp32"):
        self.inputs.append({"name": name, "dtype": dtype, "shape": shape})

    def weight(self, name, kind, logical, dtype="F32"):
        self.weights.append(name)
        self.tensors[f"{self.component}/{name}"] = weight(kind, logical, dtype, len(self.weights))
        return name

    def tensor(self, name, tensor):
        self.weights.append(name)
        self.tensors[f"{self.component}/{name}"] = tensor
        return name

    def int8_product(self, name, x, logical, static, alone=False):
        """The inputs of an int8 conv2d or linear; `static`: with the range of x; `alone`: x stays float."""
        panels, sums = int8_panel(logical, len(self.weights) + 1)
        inputs = [x, self.tensor(f"{name}.weight", panels), self.weight(f"{name}.bias", "vector", logical[:1])]
        inputs.append(self.tensor(f"{name}.weight_scale", vector([0.001] * logical[0])))
        if alone:
            return inputs
        inputs.append(self.tensor(f"{name}.weight_sum", sums))
        if static:
            inputs.append(self.tensor(f"{name}.input_scale", vector([0.05])))
            inputs.append(self.tensor(f"{name}.input_zero_point", vector([-100], "I32")))
        return inputs

    def node(self, op, name, inputs, **attributes):
        self.nodes.append((op, name, inputs, attributes))
        return name

    def output(self, name, value):
        self.outputs.append((name, value))

    def conv(self, name, x, cin, cout, kernel=1, stride=1, pads=(0, 0, 0, 0), bias=True, dtype="F32", alone=False):
        if dtype == "I8":
            inputs = self.int8_product(name, x, (cout, cin, kernel, kernel), kernel > 1, alone)
        else:
            inputs = [x, self.weight(f"{name}.weight", "panel", (cout, cin, kernel, kernel), dtype)]
            if bias:
                inputs.append(self.weight(f"{name}.bias", "vector", (cout,)))
        return self.node("conv2d", name, inputs, in_channels=cin, out_channels=cout, kernel_size=[kernel, kernel],
                         stride=[stride, stride], pads=list(pads))  # fmt: skip

    def linear(self, name, x, cin, cout, int8=False, static=False):
        if int8:
            inputs = self.int8_product(name, x, (cout, cin), static)
        else:
            inputs = [x, self.weight(f"{name}.weight", "panel", (cout, cin))]
            inputs.append(self.weight(f"{name}.bias", "vector", (cout,)))
        return self.node("linear", name, inputs, in_features=cin, out_features=cout)

    def norm(self, op, name, x, channels, **attributes):
        inputs = [
            x,
            self.weight(f"{name}.weight", "vector", (channels,)),
            self.weight(f"{name}.bias", "vector", (channels,)),
        ]
        return self.node(op, name, inputs, eps=1e-5, **attributes)

    def document(self):
        names = [i["name"] for i in self.inputs] + self.weights + [n[1] for n in self.nodes]
        number = {name: i for i, name in enumerate(names)}
        return {
            "inputs": self.inputs,
            "weights": self.weights,
            "nodes": [
                {"op": op, "name": name, "inputs": [number[i] for i in inputs], "attributes": attributes}
                for op, name, inputs, attributes in self.nodes
            ],
            "outputs": [{"name": name, "value": number[value]} for name, value in self.outputs],
        }


def _text_encoder(int8):
    g = GraphMaker("text_encoder")
    g.input("input_ids", ["batch", "length"], "int32")
    dtypes = ("I8", "I8") if int8 else ("F32", "F16")
    inputs = ["input_ids", g.weight("token", "table", (8, 16), dtypes[0])]
    inputs.append(g.weight("position", "table", (6, 16), dtypes[1]))
    if int8:
        inputs.append(g.tensor("token_scale", vector([0.01] * 8)))
        inputs.append(g.tensor("position_scale", vector([0.001] * 6)))
    g.node("embedding", "embeddings", inputs, num_embeddings=8, embedding_dim=16, max_position_embeddings=6)
    g.norm("layer_norm", "norm", "embeddings", 16, normalized_shape=16)
    g.linear("fc1", "norm", 16, 16, int8)
    g.node("quick_gelu", "act", ["fc1"])
    g.node("attention", "self", ["act", "act", "act"], num_heads=2, attention_fn="softmax", is_causal="true")
    g.node("add", "out", ["self", "embeddings"])
    g.output("last_hidden_state", "out")
    return g


def _unet(int8):
    g = GraphMaker("unet")
    g.input("sample", ["batch", "height", "width", 4])
    g.input("timestep", ["batch"])
    g.input("encoder_hidden_states", ["batch", "length", 16])
    g.node("timestep_embedding", "time", ["timestep"], embedding_dim=16)
    g.linear("time.proj", "time", 16, 16, int8, static=True)
    g.node("silu", "time.act", ["time.proj"])
    g.conv("conv_in", "sample", 4, 16, 3, 1, (1, 1, 1, 1), bias=False, dtype="I8" if int8 else "F32")
    g.node("add", "with_time", ["conv_in", "time.act"])
    g.norm("group_norm", "norm", "with_time", 16, num_groups=4, num_channels=16)
    inputs = ["norm", g.weight("depthwise.weight", "depthwise", (16, 3, 3))]
    g.node("depthwise_conv2d", "depthwise", inputs, channels=16, kernel_size=[3, 3], stride=[2, 2], pads=[1, 1, 1, 1])
    g.node("attention", "cross", ["depthwise", "encoder_hidden_states", "encoder_hidden_states"], num_heads=2,
           attention_fn="relu", is_causal="false")  # fmt: skip
    g.node("gelu", "gelu", ["cross"])
    g.node("resize_like", "up", ["gelu", "with_time"])
    g.node("concat", "skip", ["up", "with_time"])
    g.node("gated_unit", "gate", ["skip"], act_fn="silu")
    g.conv("conv_out", "gate", 16, 4, dtype="I8" if int8 else "F16")
    g.output("out_sample", "conv_out")
    return g


def _vae_decoder(int8):
    g = GraphMaker("vae_decoder")
    g.input("latent_sample", ["batch", "height", "width", 4])
    g.node("upsample", "up", ["latent_sample"], scale_factor=2)
    g.conv("conv_out", "up", 4, 3, dtype="I8" if int8 else "F32", alone=True)
    g.output("sample", "conv_out")
    return g


def _vae_encoder():
    g = GraphMaker("vae_encoder")
    g.input("sample", ["batch", "height", "width", 3])
    g.conv("conv_in", "sample", 3, 8, kernel=2, stride=2)
    g.output("latent_parameters", "conv_in")
    return g


def _schedule_rows(count):
    rows = []
    for i in range(count):
        t = 999.0 * (count - i) / count
        rows += [t, 1.0, -0.5, 1.0, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.9, 0.1, 0.0, 0.0]
    return Tensor.of("F64", [count, 16], rows)


def _padded(data, size):
    return data + bytes(-len(data) % size)


TOKENS = ["<|startoftext|>", "<|endoftext|>", "a", "b</w>", "a</w>", "ab</w>", "b", "!</w>"]


@dataclass
class Bundle:
    document: dict
    tensors: dict
    changes: dict = field(default_factory=dict)

    def change(self, stage, function):
        self.changes[stage] = function
        return self

    def _stage(self, name, value):
        function = self.changes.get(name)
        return value if function is None else function(value)

    def to_bytes(self):
        document = self._stage("document", self.document)
        if isinstance(document, dict) and document.get("checksums") is None:
            document = {**document, "checksums": {k: f"{crc32c(t.data):08x}" for k, t in self.tensors.items()}}
        text = self._stage("document_text", dump(document))
        entries = [("__metadata__", {"mdrt": text})]
        tensors = {"header_crc32c": Tensor("U8", [64], bytes(64)), **self.tensors}
        offset = 0
        for name, tensor in tensors.items():
            end = offset + len(tensor.data)
            entries.append((name, {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}))
            offset = end
        entries = self._stage("entries", entries)
        header = self._stage("header", self._stage("header_text", dump(Pairs(entries))).encode())
        header += b" " * (-(len(header) + 8) % ALIGNMENT)
        header = struct.pack("<Q", len(header)) + header
        seal = _padded(struct.pack("<I", crc32c(header)), ALIGNMENT)
        data = b"".join(t.data for t in list(tensors.values())[1:])
        return self._stage("file", header + seal + data)


def tiny_bundle(int8=False):
    """Complete, about 25 KB: four components, all ops, pipeline, two schedules, a tokenizer of eight tokens.

    `int8`: the embedding, both kinds of linear layers, a 3x3 and a 1x1 convolution are int8, and another's weights.
    """
    makers = [_text_encoder(int8), _unet(int8), _vae_decoder(int8), _vae_encoder()]
    tensors = {name: tensor for maker in makers for name, tensor in maker.tensors.items()}
    tensors["schedules/1"] = _schedule_rows(1)
    tensors["schedules/4"] = _schedule_rows(4)
    tensors["tokenizer/vocabulary"] = Tensor("U8", [], _padded("".join(t + "\n" for t in TOKENS).encode(), 64))
    tensors["tokenizer/vocabulary"].shape = [len(tensors["tokenizer/vocabulary"].data)]
    tensors["tokenizer/merges"] = Tensor.of("I32", [8, 2], [2, 3] + [0] * 14)
    schedule = {"scheduler": "ddim", "guidance_scale": 2.0, "init_noise_sigma": 1.0}
    document = {
        "format": [1, 2] if int8 else [1, 0],
        "components": {maker.component: maker.document() for maker in makers},
        "pipeline": {
            "width": 8,
            "height": 8,
            "vae_scale_factor": 2,
            "latent_channels": 4,
            "scaling_factor": 0.5,
            "shift_factor": 0.0,
            "noise": "philox",
            "scheduler_config": {
                "_class_name": "DDIMScheduler",
                "num_train_timesteps": 1000,
                "clip_sample": True,
                "eta": None,
            },
            "schedules": [{"num_inference_steps": n, **schedule} for n in (1, 4)],
        },
        "tokenizer": {
            "vocab_size": len(TOKENS),
            "num_merges": 1,
            "model_max_length": 6,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
            "unk_token_id": 1,
        },
        "provenance": {"source": "made for tests", "license": "Apache-2.0", "converter": "tests/mini_bundle.py"},
    }
    return Bundle(document, tensors)
