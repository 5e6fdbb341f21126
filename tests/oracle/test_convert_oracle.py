"""Checkpoints of random configurations: the graphs made from them against PyTorch, diffusers and transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mdrt.interpreter import Interpreter
from weights_tools.checkpoint import Checkpoint
from weights_tools.components import load_networks
from weights_tools.new import new

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle

NUM_CONFIGURATIONS = 24
TOLERANCE = 5e-6


def random_settings(seed: int) -> dict[str, Any]:
    """Every key that shapes a network, drawn; sizes small."""
    draw = random.Random(seed)
    levels = draw.randint(1, 4)
    groups = draw.choice([1, 2, 3, 4])
    head = draw.choice([4, 8, 12])
    latents = draw.choice([3, 4, 5, 8, 16])
    vae_levels = draw.randint(1, 4)
    return {
        "in_channels": latents,
        "out_channels": latents,
        "sample_size": 8,
        "block_out_channels": [head * groups * draw.randint(1, 3) for _ in range(levels)],
        "downsample": [draw.random() < 0.7 for _ in range(levels - 1)],
        "layers_per_block": [draw.randint(1, 3) for _ in range(levels)],
        "transformer_layers_per_block": [draw.randint(0, 2) for _ in range(levels)],
        "self_attention": [draw.random() < 0.5 for _ in range(levels)],
        "mid_transformer_layers": draw.randint(0, 2),
        "separable_conv": [draw.random() < 0.5 for _ in range(levels)],
        "attention_head_dim": head,
        "cross_attention_dim": 24,
        "ff_mult": draw.choice([1, 3, 4, 6, 8]),
        "norm_num_groups": groups,
        "share_kv": draw.random() < 0.5,
        "attention_fn": draw.choice(["softmax", "relu"]),
        "act_fn": draw.choice(["silu", "gelu"]),
        "text_encoder.hidden_size": 24,
        "text_encoder.intermediate_size": draw.choice([24, 40]),
        "text_encoder.num_hidden_layers": draw.randint(1, 3),
        "text_encoder.num_attention_heads": draw.choice([1, 2, 3, 4]),
        "text_encoder.max_position_embeddings": 12,
        "text_encoder.hidden_act": draw.choice(["gelu", "quick_gelu"]),
        "vae.latent_channels": latents,
        "vae.block_out_channels": [groups * draw.randint(1, 4) for _ in range(vae_levels)],
        "vae.layers_per_block": draw.randint(1, 2),
        "vae.norm_num_groups": groups,
        "vae.mid_block_add_attention": draw.random() < 0.5,
        "vae.use_quant_conv": draw.random() < 0.5,
        "vae.use_post_quant_conv": draw.random() < 0.5,
    }


def nhwc(x: Any) -> NDArray[np.float32]:
    return np.ascontiguousarray(np.asarray(x).transpose(0, 2, 3, 1))


def relative_rmse(x: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = x.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))


def expected_text(folder: Path, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    from transformers import CLIPTextModel

    model = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    return np.asarray(model(torch.from_numpy(ids).long()).last_hidden_state)


def expected_unet(folder: Path, *inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    import dataclasses

    from safetensors.torch import load_file

    from weights_tools.modules import MobileDiffusionUNet2DConditionModel
    from weights_tools.unet import UNetConfig

    document = json.loads((folder / "unet/config.json").read_text())
    fields = {f.name for f in dataclasses.fields(UNetConfig)}
    config = UNetConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in document.items() if key in fields})
    model = MobileDiffusionUNet2DConditionModel(config).eval()
    model.load_state_dict(load_file(folder / "unet/diffusion_pytorch_model.safetensors"))
    return np.asarray(model(*(torch.from_numpy(x) for x in inputs)))


def expected_vae(
    folder: Path, latent: NDArray[np.float32], image: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[Any]]:
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_pretrained(folder / "vae").eval()
    moments = model.encode(torch.from_numpy(image)).latent_dist.parameters
    return np.asarray(model.decode(torch.from_numpy(latent)).sample), np.asarray(moments)


@pytest.mark.parametrize("seed", range(NUM_CONFIGURATIONS))
@torch.no_grad()
def test_random_configuration(seed: int, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    new(
        folder,
        settings=random_settings(seed),
        dtype="fp32",
        seed=seed,
        tokenizer=Path(__file__).parent.parent / "data/micro-a/tokenizer",
    )
    networks = load_networks(Checkpoint(folder), with_encoder=True)
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape, dtype=np.float32)

    def run(component: str, feeds: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        network = networks.components[component]
        return next(iter(Interpreter(network.graph, network.weights, "reference").run(feeds).values()))

    ids = generator.integers(0, networks.text_encoder.vocab_size, (2, 12), dtype=np.int32)
    text = run("text_encoder", {"input_ids": ids})
    assert relative_rmse(text, expected_text(folder, ids)) < TOLERANCE

    latents = networks.vae.latent_channels
    height, width = generator.integers(5, 12, 2)
    sample, timestep = normal(2, latents, height, width), generator.integers(0, 1000, 2).astype(np.float32)
    feeds = {"sample": nhwc(sample), "timestep": timestep, "encoder_hidden_states": text}
    assert relative_rmse(run("unet", feeds), nhwc(expected_unet(folder, sample, timestep, text))) < TOLERANCE

    scale = networks.vae.scale_factor
    latent, image = normal(1, latents, 3, 4), normal(1, 3, 3 * scale, 4 * scale)
    decoded, moments = expected_vae(folder, latent, image)
    assert relative_rmse(run("vae_decoder", {"latent_sample": nhwc(latent)}), nhwc(decoded)) < TOLERANCE
    assert relative_rmse(run("vae_encoder", {"sample": nhwc(image)}), nhwc(moments)) < TOLERANCE
