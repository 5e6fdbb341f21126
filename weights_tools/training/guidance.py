"""The stage `guidance`: distils classifier-free guidance of a fixed weight into the UNet, which then needs one call.

Meng et al., "On Distillation of Guided Diffusion Models", arXiv 2210.03142, their first stage with one weight. The text
encoder stays as it is, and so does what the empty caption predicts.
"""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from weights_tools.training import workers
from weights_tools.training.base import Batches, DiffusionTraining, dropped, random_timesteps
from weights_tools.training.diffusion import Diffusion, guided
from weights_tools.training.networks import TextToLatents, autocast, empty_ids, load, write_light
from weights_tools.training.stage import Context, State, adamw, train


@dataclass(frozen=True)
class GuidanceTraining(DiffusionTraining):
    """`guidance_scale` is the weight to distil: the one with which the base draws best."""

    init: str = "base/light"
    guidance_scale: float = 1.5
    caption_dropout: float = 0.1


def run(context: Context) -> None:
    """Leaves `guidance/light`."""
    config = context.config(GuidanceTraining)
    batches = Batches(context, config)
    model = load(context.folder / config.init).to(context.device)
    teacher = copy.deepcopy(model.unet).requires_grad_(False)
    text_encoder = model.text_encoder.requires_grad_(False)
    state = State({"unet": model.unet}, {"unet": adamw(model.unet.parameters(), config)})
    state.add_averages("unet")
    diffusion, empty = Diffusion(context.device), empty_ids(context.folder).to(context.device)

    def update(step: int, random: np.random.Generator) -> Mapping[str, torch.Tensor]:
        del step
        sample, noise, ids = batches.draw(random, workers.share(config.batch_size))
        timestep = random_timesteps(random, len(ids), context.device)
        noisy = diffusion.add_noise(sample, noise, timestep)
        ids = dropped(random, ids, empty, config.caption_dropout)
        with autocast(context.device, config.bf16):
            with torch.no_grad():
                text = text_encoder(ids)
                target = guided(teacher, noisy, timestep, text, text_encoder(empty), config.guidance_scale)
            velocity = model.unet(noisy, timestep, text)
        loss = (velocity.float() - target.float()).square().mean()
        workers.descend(model.unet, state.optimizers.values(), loss, config.clip_norm)
        return {"loss": loss.detach()}

    def write() -> None:
        write_light(context, TextToLatents(text_encoder, state.averages["unet"]))

    train(context, config, state, update, on_checkpoint=write)
