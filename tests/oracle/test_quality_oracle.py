"""What int8 costs the built-in model, natively and in a PyTorch simulation of the same quantisation.

The yardstick is the model in fp16, whose weights are those of the checkpoint; PyTorch runs it in float32. All 64
prompts take minutes, so that a slice of them runs unless MDRT_CI_FULL is set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mdrt
from mdrt import _core, models, prompts
from mdrt.compare import psnr
from mdrt.quantise import layers
from mdrt.stages import Stages

torch = pytest.importorskip("torch")
from simulation import SimulatedPipeline  # noqa: E402

pytestmark = pytest.mark.oracle

DATA = Path(__file__).parent.parent / "data"
YARDSTICK = DATA / "emoji-fp16.mdrt"
PROMPTS = prompts.read(DATA / "prompts.txt")
NUMBERS = range(0, len(PROMPTS), 1 if os.environ.get("MDRT_CI_FULL") else 16)
# Model calls, and the least mean and worst PSNR in dB of the pictures, with the guidance that the bundle stores.
BARS = {1: (45.0, 42.0), 8: (42.0, 39.0)}
FP16_MEAN = 60.0
APART = 1.0  # dB between native and simulation


@pytest.fixture(scope="module")
def simulated() -> tuple[SimulatedPipeline, SimulatedPipeline]:
    """In float32, and in int8."""
    return SimulatedPipeline(YARDSTICK, YARDSTICK), SimulatedPipeline(models.builtin_path(), YARDSTICK)


def noise(number: int) -> NDArray[np.float32]:
    return _core.philox_normal(number, 0, 8 * 16 * 16).reshape(1, 8, 16, 16)


@pytest.mark.parametrize("steps", BARS)
def test_pictures(steps: int, simulated: tuple[SimulatedPipeline, SimulatedPipeline]) -> None:
    least_mean, least_worst = BARS[steps]
    _, guidance = Stages(models.builtin_path()).schedule(steps)
    exact, rounded = simulated
    found: dict[str, list[float]] = {"native": [], "simulated": [], "fp16": []}
    with mdrt.Pipeline() as native, mdrt.Pipeline(YARDSTICK) as half:
        for number in NUMBERS:
            prompt = PROMPTS[number]
            options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
            expected = exact(prompt, noise(number), **options)
            pictures = {
                "native": np.asarray(native(prompt, latents=noise(number), **options)),
                "simulated": rounded(prompt, noise(number), **options),
                "fp16": np.asarray(half(prompt, latents=noise(number), **options)),
            }
            for name, picture in pictures.items():
                found[name].append(psnr(expected, picture, peak=255))
    for name, values in found.items():
        print(f"{steps} steps, {name}: mean {np.mean(values):.2f}, worst {min(values):.2f} dB")  # noqa: T201
    assert len(PROMPTS) == 64
    assert np.mean(found["native"]) >= max(least_mean, np.mean(found["simulated"]) - APART)
    assert min(found["native"]) >= max(least_worst, min(found["simulated"]) - APART)
    assert np.mean(found["fp16"]) >= FP16_MEAN


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_layers(component: str, simulated: tuple[SimulatedPipeline, SimulatedPipeline]) -> None:
    """Every layer with int8 weights gives in the middle of a picture what it gives in PyTorch.

    To the bit where integers are multiplied, since all sums are exact.
    """
    simulation = simulated[1].components[component]
    stages = Stages(models.builtin_path())
    schedule, guidance = stages.schedule(8)
    latents = list(stages.walk(PROMPTS[0], stages.noise(0), schedule, guidance, 0))
    feeds: dict[str, dict[str, NDArray[Any]]] = {
        "text_encoder": {"input_ids": stages.ids(["", PROMPTS[0]])},
        "unet": dict(stages.unet_feeds(latents[3], schedule.rows[3, 0], stages.context(["", PROMPTS[0]]))),
        "vae_decoder": dict(stages.decoder_feeds(latents[-1])),
    }
    nodes = [
        node
        for layer in layers(simulation.graph).values()
        for node in layer.nodes
        if simulation.is_int8(node) and node.op != "embedding"
    ]
    assert len(nodes) > 20
    errors = {}
    for node in nodes:
        wanted = [name for name in (node.inputs[0], node.name) if name not in feeds[component]]
        values = {**feeds[component], **stages.run(component, wanted, **feeds[component])}
        expected = simulation.node(node, [torch.from_numpy(values[node.inputs[0]])]).numpy()
        difference = values[node.name].astype(np.float64) - expected
        errors[node.name] = float(np.sqrt(np.mean(difference**2) / np.mean(expected.astype(np.float64) ** 2)))
    worst = max(errors, key=lambda name: errors[name])
    print(f"{component}: {len(errors)} layers, worst relative RMSE {errors[worst]:.1e} ({worst})")  # noqa: T201
    assert errors[worst] < 1e-5
    assert not any(errors[node.name] for node in nodes if simulation.multiplies_integers(node))
