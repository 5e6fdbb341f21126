"""A bundle simulated in PyTorch, int8 included: an arithmetic of its own, from the float weights of another bundle.

Of an int8 bundle it takes the graph, which says what is int8, and the calibrated scale and zero point of inputs.
Weights come from a bundle in fp32 or fp16 and are rounded here; integers are added exactly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mdrt import _core, schedulers
from mdrt.graph import Graph, Node


def float_weights(path: str | Path, component: str) -> dict[str, Tensor]:
    """The weights of a float bundle in checkpoint layout."""
    model = _core.Model(str(path))
    stored = {name: (dtype, array) for name, dtype, _, array in model.tensors()}
    return {
        name: torch.from_numpy(_core.unpack(weight.kind, *stored[f"{component}/{name}"], weight.shape))
        for name, weight in Graph.load(path, component).weights.items()
    }


def constants(path: str | Path, component: str) -> dict[str, float]:
    """The calibrated numbers of an int8 bundle."""
    return {
        name.partition("/")[2]: float(array[0])
        for name, _, _, array in _core.Model(str(path)).tensors()
        if name.startswith(f"{component}/") and name.endswith((".input_scale", ".input_zero_point"))
    }


def round_columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers as float32, and the scale of each of the first dimension, shaped to multiply them."""
    scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / 127
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (weight * (1 / scale)).round(), scale


class Simulation:
    """One component. Values are channels last, as in the file."""

    def __init__(self, path: str | Path, component: str, weights: Mapping[str, Tensor]) -> None:
        self.graph = Graph.load(path, component)
        self._weights = weights
        self._constants = constants(path, component)
        self._rounded: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def run(self, outputs: Sequence[str], **feeds: NDArray[Any]) -> dict[str, NDArray[np.float32]]:
        """Outputs or inner values by name."""
        values = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in feeds.items()}
        for node in self.graph.nodes:
            values[node.name] = self.node(node, [values[name] for name in node.inputs if name in values])
        return {name: values[self.graph.outputs.get(name, name)].numpy() for name in outputs}

    @torch.no_grad()
    def node(self, node: Node, x: Sequence[Tensor]) -> Tensor:
        """What one node makes of its activations."""
        compute: Callable[..., Tensor] = getattr(self, f"_{node.op}")
        return compute(node, *x)

    def is_int8(self, node: Node) -> bool:
        """Whether its weights are int8."""
        return node.op in ("conv2d", "linear", "embedding") and len(node.inputs) > 3

    def multiplies_integers(self, node: Node) -> bool:
        return node.op in ("conv2d", "linear") and len(node.inputs) > 4

    def _weight(self, node: Node, slot: int = 1) -> Tensor:
        return self._weights[node.inputs[slot]]

    def _bias(self, node: Node) -> Tensor | None:
        return self._weights.get(node.inputs[2]) if len(node.inputs) > 2 else None

    def _product(self, node: Node, x: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """`multiply` without bias, of floats or of integers that are scaled afterwards."""
        bias = self._bias(node)
        if not self.is_int8(node):
            y = multiply(x, self._weight(node))
            return y if bias is None else y + bias
        name = node.inputs[1]
        if name not in self._rounded:
            self._rounded[name] = round_columns(self._weights[name])
        weight, weight_scale = self._rounded[name]
        if not self.multiplies_integers(node):
            y = multiply(x, weight * weight_scale)
            return y if bias is None else y + bias
        module = name.removesuffix(".weight")
        if f"{module}.input_scale" in self._constants:
            scale = torch.tensor(self._constants[f"{module}.input_scale"])
            zero_point = self._constants[f"{module}.input_zero_point"]
            integers = ((x * (1 / scale)).round() + zero_point).clamp(-128, 127) - zero_point
        else:
            scale = x.abs().amax(dim=-1, keepdim=True) / 127
            scale = torch.where(scale == 0, torch.ones_like(scale), scale)
            integers = (x * (1 / scale)).round()
        # float32 is exact, too, as long as no sum can leave the integers that it holds.
        wide = torch.float32 if weight[0].numel() * 255 * 127 < 2**24 else torch.float64
        y = multiply(integers.to(wide), weight.to(wide)).float() * (scale * weight_scale.flatten())
        return y if bias is None else y + bias

    def _conv2d(self, node: Node, x: Tensor) -> Tensor:
        def convolve(x: Tensor, weight: Tensor) -> Tensor:
            padded = _padded(x.permute(0, 3, 1, 2), node)
            return functional.conv2d(padded, weight, stride=node.attributes["stride"]).permute(0, 2, 3, 1)

        return self._product(node, x, convolve)

    def _depthwise_conv2d(self, node: Node, x: Tensor) -> Tensor:
        weight = self._weight(node).unsqueeze(1)
        padded = _padded(x.permute(0, 3, 1, 2), node)
        y = functional.conv2d(padded, weight, self._bias(node), node.attributes["stride"], groups=len(weight))
        return y.permute(0, 2, 3, 1)

    def _linear(self, node: Node, x: Tensor) -> Tensor:
        return self._product(node, x, lambda x, weight: x @ weight.T)

    def _embedding(self, node: Node, ids: Tensor) -> Tensor:
        tables = [self._weight(node), self._weight(node, 2)]
        if self.is_int8(node):
            tables = [integers * scale for integers, scale in map(round_columns, tables)]
        return tables[0][ids.long()] + tables[1][: ids.shape[1]]

    def _attention(self, node: Node, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = [x.flatten(1, -2).unflatten(-1, (node.attributes["num_heads"], -1)).transpose(1, 2) for x in (q, k, v)]
        if node.attributes["attention_fn"] == "relu":
            scores = heads[0] @ heads[1].mT / math.sqrt(heads[0].shape[-1])
            y = functional.relu(scores) / scores.shape[-1] @ heads[2]
        else:
            causal = node.attributes["is_causal"] == "true"
            y = functional.scaled_dot_product_attention(*heads, is_causal=causal)
        return y.transpose(1, 2).reshape(q.shape)

    def _group_norm(self, node: Node, x: Tensor) -> Tensor:
        weight, bias = self._weight(node), self._weight(node, 2)
        y = functional.group_norm(x.movedim(-1, 1), node.attributes["num_groups"], weight, bias, node.attributes["eps"])
        return y.movedim(1, -1)

    def _layer_norm(self, node: Node, x: Tensor) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], self._weight(node), self._weight(node, 2), node.attributes["eps"])

    def _silu(self, node: Node, x: Tensor) -> Tensor:
        return functional.silu(x)

    def _gelu(self, node: Node, x: Tensor) -> Tensor:
        return functional.gelu(x)

    def _quick_gelu(self, node: Node, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)

    def _gated_unit(self, node: Node, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * (functional.silu(gate) if node.attributes["act_fn"] == "silu" else functional.gelu(gate))

    def _add(self, node: Node, a: Tensor, b: Tensor) -> Tensor:
        return a + (b.reshape(len(b), *[1] * (a.ndim - 2), b.shape[-1]) if b.ndim < a.ndim else b)

    def _concat(self, node: Node, *x: Tensor) -> Tensor:
        return torch.cat(x, dim=-1)

    def _upsample(self, node: Node, x: Tensor) -> Tensor:
        factor = node.attributes["scale_factor"]
        return x.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)

    def _resize_like(self, node: Node, x: Tensor, like: Tensor) -> Tensor:
        y = functional.interpolate(x.permute(0, 3, 1, 2), size=like.shape[1:3], mode="nearest")
        return y.permute(0, 2, 3, 1)

    def _timestep_embedding(self, node: Node, timestep: Tensor) -> Tensor:
        half = node.attributes["embedding_dim"] // 2
        steps = torch.arange(half, dtype=torch.float32)
        angle = timestep.unsqueeze(1) * torch.exp(-math.log(10000) * steps / half)
        return torch.cat([angle.cos(), angle.sin()], dim=1)


def _padded(x: Tensor, node: Node) -> Tensor:
    top, left, bottom, right = node.attributes["pads"]
    return functional.pad(x, (left, right, top, bottom))


class SimulatedPipeline:
    """Prompt and start noise to picture."""

    def __init__(self, path: str | Path, yardstick: str | Path) -> None:
        """The bundle `path` with the weights of the float bundle `yardstick`."""
        self._model = _core.Model(str(path))
        self._config = json.loads(self._model.metadata())["pipeline"]
        self.components = {
            name: Simulation(path, name, float_weights(yardstick, name))
            for name in ("text_encoder", "unet", "vae_decoder")
        }

    def __call__(
        self, prompt: str, noise: NDArray[np.float32], num_inference_steps: int, guidance_scale: float
    ) -> NDArray[np.uint8]:
        """RGB (height, width, 3) from noise (1, C, h, w)."""
        texts = ["", prompt] if guidance_scale > 1 else [prompt]
        ids = np.array([self._model.tokenize(text) for text in texts], dtype=np.int32)
        context = self._run("text_encoder", "last_hidden_state", input_ids=ids)
        schedule = schedulers.make_rows(self._config["scheduler_config"], "ddim", num_inference_steps)
        x = np.ascontiguousarray(noise.transpose(0, 2, 3, 1)) * np.float32(schedule.init_noise_sigma)
        for row in schedule.rows:
            out = self._run(
                "unet",
                "out_sample",
                sample=np.repeat(x, len(texts), axis=0),
                timestep=np.full(len(texts), row[0], np.float32),
                encoder_hidden_states=context,
            ).astype(np.float64)
            guided = out[:1] if len(texts) == 1 else out[:1] + guidance_scale * (out[1:] - out[:1])
            x = _update(dict(zip(schedulers.COLUMNS, row, strict=True)), x.astype(np.float64), guided)
        latent = x / self._config["scaling_factor"] + self._config["shift_factor"]
        image = self._run("vae_decoder", "sample", latent_sample=latent.astype(np.float32))[0]
        return np.asarray(np.rint(np.clip(image / 2 + 0.5, 0, 1) * 255), dtype=np.uint8)

    def _run(self, component: str, output: str, **feeds: NDArray[Any]) -> NDArray[np.float32]:
        return self.components[component].run([output], **feeds)[output]


def _update(row: Mapping[str, float], x: NDArray[np.float64], out: NDArray[np.float64]) -> NDArray[np.float32]:
    """DDIM's part of a row's arithmetic."""
    y = row["p"] * x + row["q"] * out
    if row["clip"] > 0:
        y = np.clip(y, -row["clip"], row["clip"])
    return np.asarray(row["a"] * x + row["b"] * y + row["e"] * out, dtype=np.float32)
