"""The stage `progressive`: each round halves the steps of the round before, down to one.

Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", arXiv 2202.00512: one DDIM step of
the student lands where two of the teacher do. The text encoder stays as it is. A share of each batch keeps what the
teacher predicts at the timesteps of the first round, so that the same weights still draw in as many steps.
"""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mdrt.errors import ConversionError
from weights_tools.training import workers
from weights_tools.training.base import Batches, DiffusionTraining
from weights_tools.training.diffusion import CLEAN, NUM_TRAIN_TIMESTEPS, Diffusion, Predict, trailing
from weights_tools.training.networks import TextToLatents, autocast, load, to_device, write_light
from weights_tools.training.stage import Context, State, adamw, train


@dataclass(frozen=True)
class ProgressiveTraining(DiffusionTraining):
    """`samples` are shared equally by the rounds; the learning rate falls anew in each."""

    init: str = "guidance/light"
    rounds: tuple[int, ...] = (8, 4, 2, 1)  # the student's steps, by round; the first teacher takes twice the first
    keep: float = 0.25  # share of each batch that keeps the first round's timesteps

    def __post_init__(self) -> None:
        super().__post_init__()
        halves = all(now == 2 * following for now, following in itertools.pairwise(self.rounds))
        if not self.rounds or not halves or not 0 < 2 * self.rounds[0] <= NUM_TRAIN_TIMESTEPS:
            raise ConversionError(f"rounds are {self.rounds}; each must be half of the one before, such as 8, 4, 2, 1")
        if self.steps < len(self.rounds):
            raise ConversionError(
                f"{self.samples} samples are less than one batch for each of {len(self.rounds)} rounds"
            )

    @property
    def round_steps(self) -> int:
        """Updates in each round but the last, which may have a few more."""
        return self.steps // len(self.rounds)

    def round_at(self, step: int) -> int:
        """The index of the round of update `step`."""
        return min(step // self.round_steps, len(self.rounds) - 1)

    def learning_rate_at(self, step: int) -> float:
        done = step - self.round_at(step) * self.round_steps
        return super().learning_rate_at(min(done * len(self.rounds), self.steps))


def two_step_target(
    diffusion: Diffusion, teacher: Predict, noisy: Tensor, timestep: Tensor, middle: Tensor, following: Tensor
) -> Tensor:
    """The clean latents that a student must predict so that one DDIM step leads where two of the teacher do.

    The teacher goes from `timestep` over `middle` to `following`, all (n) int64.
    """
    halfway = diffusion.step(noisy, teacher(noisy, timestep), timestep, middle)
    end = diffusion.step(halfway, teacher(halfway, middle), middle, following)
    ratio = diffusion.noise(following) / diffusion.noise(timestep)
    return (end - ratio * noisy) / (diffusion.signal(following) - ratio * diffusion.signal(timestep))


def sample_loss(diffusion: Diffusion, predicted: Tensor, target: Tensor, timestep: Tensor) -> Tensor:
    """The mean squared difference of clean latents, weighted by max(SNR, 1)."""
    weight = diffusion.signal_to_noise(timestep).clamp(min=1)
    return (weight * (predicted - target).square()).mean()


def random_steps(random: np.random.Generator, count: int, steps: int) -> Tensor:
    """Random steps of a student that takes `steps`: (3, count) int64, their beginnings, middles and ends."""
    times = torch.tensor([*trailing(2 * steps), CLEAN])
    index = 2 * torch.from_numpy(random.integers(steps, size=count))
    return torch.stack([times[index], times[index + 1], times[index + 2]])


def run(context: Context) -> None:
    """Leaves `progressive/light`, which draws in the last round's number of steps."""
    config = context.config(ProgressiveTraining)
    batches = Batches(context, config)
    model = load(context.folder / config.init).to(context.device)
    text_encoder = model.text_encoder.requires_grad_(False)
    teacher = copy.deepcopy(model.unet).requires_grad_(False)
    state = State({"unet": model.unet, "teacher": teacher}, {"unet": adamw(model.unet.parameters(), config)})
    state.add_averages("unet")
    diffusion = Diffusion(context.device)

    def begin_round() -> None:
        average = state.averages["unet"].state_dict()
        teacher.load_state_dict(average)
        model.unet.load_state_dict(average)
        state.optimizers["unet"].state.clear()

    def predictor(unet: Callable[..., Tensor], text: Tensor) -> Predict:
        return lambda noisy, timestep: unet(noisy, timestep, text).float()

    def update(step: int, random: np.random.Generator) -> Mapping[str, Tensor | float]:
        number = config.round_at(step)
        if step == number * config.round_steps and number:
            begin_round()
        sample, noise, ids = batches.draw(random, workers.share(config.batch_size))
        kept = round(config.keep * len(ids))
        times = torch.cat(
            [
                random_steps(random, kept, config.rounds[0]),
                random_steps(random, len(ids) - kept, config.rounds[number]),
            ],
            dim=1,
        )
        timestep, middle, following = to_device(times, context.device)
        noisy = diffusion.add_noise(sample, noise, timestep)
        with autocast(context.device, config.bf16):
            with torch.no_grad():
                text = text_encoder(ids)
                old = teacher(noisy[:kept], timestep[:kept], text[:kept]).float()
                known = diffusion.predicted_sample(noisy[:kept], old, timestep[:kept])
                later = (part[kept:] for part in (noisy, timestep, middle, following))
                target = torch.cat([known, two_step_target(diffusion, predictor(teacher, text[kept:]), *later)])
            velocity = predictor(model.unet, text)(noisy, timestep)
        loss = sample_loss(diffusion, diffusion.predicted_sample(noisy, velocity, timestep), target, timestep)
        workers.descend(model.unet, state.optimizers.values(), loss, config.clip_norm)
        return {"loss": loss.detach(), "num_inference_steps": float(config.rounds[number])}

    def write() -> None:
        write_light(context, TextToLatents(text_encoder, state.averages["unet"]))

    train(context, config, state, update, on_checkpoint=write)
