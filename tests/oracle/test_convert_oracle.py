"""Checkpoints of random configurations: the graphs made from them against PyTorch, diffusers and transformers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mdrt.session import Session
from weights_tools.convert import convert
from weights_tools.new import new

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.oracle

NUM_CONFIGURATIONS = 24
TOLERANCES = {"reference": 5e-6, "native": 1e-5}  # relative RMSE
TOKENIZER = Path(__file__).parent.parent / "data/micro-a/tokenizer"


def random_settings(seed: int) -> dict[str, Any]:
    """Every key that shapes a network, drawn; sizes small."""
    draw = random.Random(seed)
    levels = draw.randint(1, 4)
    groups = draw.choice([1, 2, 3, 4])
    head = draw.choice([4, 8, 12])
    channels = [head * groups * draw.randint(1, 3) for _ in range(levels)]
    # The number of heads is rounded down, so a head may be larger than the key says.
    head_dims = [size for size in range(3, head + 1) if not any(count % (count // size) for count in channels)]
    latents = draw.choice([3, 4, 5, 8, 16])
    vae_levels = draw.randint(1, 4)
    return {
        "in_channels": latents,
        "out_channels": latents,
        "sample_size": 8,
        "block_out_channels": channels,
        "downsample": [draw.random() < 0.7 for _ in range(levels - 1)],
        "layers_per_block": [draw.randint(1, 3) for _ in range(levels)],
        "transformer_layers_per_block": [draw.randint(0, 2) for _ in range(levels)],
        "self_attention": [draw.random() < 0.5 for _ in range(levels)],
        "mid_transformer_layers": draw.randint(0, 2),
        "separable_conv": [draw.random() < 0.5 for _ in range(levels)],
        "attention_head_dim": draw.choice(head_dims),
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


def relative_rmse(x: NDArray[Any], expected: NDArray[Any]) -> float:
    difference = x.astype(np.float64) - expected
    return float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))


def expected_text(folder: Path, ids: NDArray[np.int32]) -> NDArray[np.float32]:
    from transformers import CLIPTextModel

    model = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).eval()
    return np.asarray(model(torch.from_numpy(ids).long()).last_hidden_state)


def expected_unet(folder: Path, *inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    from weights_tools.modules import load_unet

    return np.asarray(load_unet(folder)(*(torch.from_numpy(x) for x in inputs)))


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
    """Both backends run the converted bundle."""
    checkpoint, bundle = tmp_path / "checkpoint", tmp_path / "model.mdrt"
    new(checkpoint, settings=random_settings(seed), dtype="fp32", seed=seed, tokenizer=TOKENIZER)
    convert(checkpoint, bundle, with_encoder=True, steps=[1])
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.standard_normal(shape, dtype=np.float32)

    def check(component: str, expected: NDArray[Any], **inputs: NDArray[Any]) -> None:
        for backend, tolerance in TOLERANCES.items():
            with Session(bundle, component, backend=backend) as session:
                (result,) = session.run(**inputs).values()
            assert relative_rmse(result, expected) <= tolerance, (component, backend)

    ids = generator.integers(0, 2048, (2, 12), dtype=np.int32)
    text = expected_text(checkpoint, ids)
    check("text_encoder", text, input_ids=ids)

    config = json.loads((checkpoint / "vae/config.json").read_text())
    latents, scale = config["latent_channels"], 2 ** (len(config["block_out_channels"]) - 1)
    height, width = generator.integers(5, 12, 2)
    sample, timestep = normal(2, latents, height, width), generator.integers(0, 1000, 2).astype(np.float32)
    expected = expected_unet(checkpoint, sample, timestep, text)
    check("unet", expected, sample=sample, timestep=timestep, encoder_hidden_states=text)

    latent, image = normal(1, latents, 3, 4), normal(1, 3, 3 * scale, 4 * scale)
    decoded, moments = expected_vae(checkpoint, latent, image)
    check("vae_decoder", decoded, latent_sample=latent)
    check("vae_encoder", moments, sample=image)
