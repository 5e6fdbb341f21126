"""Exports the networks of a diffusers pipeline directory to ONNX in float32, with the names of Optimum's exports.

    python benchmarks/export_onnx.py CHECKPOINT OUTPUT [--components unet vae_decoder ...] [--latent-size 64]

Writes OUTPUT/<component>.onnx for one picture of a fixed size, which is what ONNX Runtime optimises best.
Needs torch, onnx, diffusers and transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import onnx
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from weights_tools.modules import load_unet


class Network(NamedTuple):
    """A module in inference mode, inputs for one picture in its order, and the name of its output."""

    module: nn.Module
    inputs: dict[str, Tensor]
    output: str


class _Decoder(nn.Module):
    """The decoder's way through a diffusers autoencoder."""

    def __init__(self, model: AutoencoderKL) -> None:
        super().__init__()
        self.model = model

    def forward(self, latent_sample: Tensor) -> Tensor:
        sample: Tensor = self.model.decode(latent_sample).sample
        return sample


class _TextEncoder(nn.Module):
    """Only the last hidden state of a transformers text encoder."""

    def __init__(self, model: CLIPTextModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        state: Tensor = self.model(input_ids).last_hidden_state
        return state


def unet(checkpoint: Path, latent_size: int) -> Network:
    """sample, timestep, encoder_hidden_states -> out_sample."""
    model = load_unet(checkpoint)
    config = model.config
    inputs = {
        "sample": torch.randn(1, config.in_channels, latent_size, latent_size),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, _max_length(checkpoint), config.cross_attention_dim),
    }
    return Network(model, inputs, "out_sample")


def vae_decoder(checkpoint: Path, latent_size: int) -> Network:
    """latent_sample -> sample."""
    model = AutoencoderKL.from_pretrained(checkpoint / "vae", torch_dtype=torch.float32).eval()
    latent = torch.randn(1, model.config.latent_channels, latent_size, latent_size)
    return Network(_Decoder(model), {"latent_sample": latent}, "sample")


def text_encoder(checkpoint: Path, latent_size: int) -> Network:
    """input_ids (int64) -> last_hidden_state."""
    del latent_size
    model = CLIPTextModel.from_pretrained(checkpoint / "text_encoder", dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(0, model.config.vocab_size, (1, _max_length(checkpoint)))
    return Network(_TextEncoder(model.eval()), {"input_ids": ids}, "last_hidden_state")


COMPONENTS = {"text_encoder": text_encoder, "unet": unet, "vae_decoder": vae_decoder}


def _max_length(checkpoint: Path) -> int:
    return int(CLIPTextConfig.from_pretrained(checkpoint / "text_encoder").max_position_embeddings)


def export(network: Network, path: Path) -> None:
    """Writes one ONNX file; sizes are those of the network's inputs."""
    with torch.no_grad():
        torch.onnx.export(
            network.module,
            tuple(network.inputs.values()),
            path,
            input_names=list(network.inputs),
            output_names=[network.output],
            opset_version=17,
            dynamo=False,
        )
    model = onnx.load(path)
    _separate(model.graph)
    onnx.save(model, path)


def _separate(graph: onnx.GraphProto) -> None:
    """Gives every node its own weights again.

    The exporter stores equal ones once, behind Identity: the zero biases of a random checkpoint are. Quantisers would
    leave these layers in float. In a trained model none are equal.
    """
    weights = {weight.name: weight for weight in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Identity" and node.input[0] in weights]:
        copy = graph.initializer.add()
        copy.CopyFrom(weights[node.input[0]])
        copy.name = node.output[0]
        graph.node.remove(node)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--components", nargs="+", choices=COMPONENTS, default=list(COMPONENTS))
    parser.add_argument("--latent-size", type=int, default=64)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for component in arguments.components:
        path = arguments.output / f"{component}.onnx"
        export(COMPONENTS[component](arguments.checkpoint, arguments.latent_size), path)
        print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
