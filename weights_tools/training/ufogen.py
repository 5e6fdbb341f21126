"""The stage `ufogen`: a diffusion GAN sharpens the one-step student and lets bare keywords choose.

Xu et al., "UFOGen", arXiv 2311.09257, for a generator that shares its weights between one step and eight. Both networks
start from a UNet. Half of each batch begins with noise alone, the other half where the generator's own steps have led
(backward distillation, Kohler et al., "Imagine Flash", arXiv 2405.05224): on noised true latents it would never meet
its own mistakes, which eight steps add up. The generator predicts clean latents; the discriminator sees them and true
ones at a noise level of any height and judges each latent cell. The generator is also held to the true latents, less so
for bare keywords, of which one caption has many. The discriminator is kept smooth by perturbation (arXiv 2211.11092's
R1 without a second derivative): |D(x) - D(x + s n)|^2.
"""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from mdrt.errors import ConversionError
from weights_tools.modules import MobileDiffusionUNet2DConditionModel, load_unet
from weights_tools.training import workers
from weights_tools.training.base import Batches, SupervisedTraining, distances
from weights_tools.training.diffusion import Diffusion, trailing
from weights_tools.training.muon import muon_and_adamw
from weights_tools.training.networks import TextToLatents, autocast, load, to_device, write_light
from weights_tools.training.pool import KINDS
from weights_tools.training.stage import Context, State, adamw, train


@dataclass(frozen=True)
class UfogenTraining(SupervisedTraining):
    """`learning_rate` is the generator's; the discriminator's is `discriminator_rate` times it."""

    init: str = "progressive/light"
    discriminator: str = "base/light"  # the pipeline directory whose UNet it starts from
    betas: tuple[float, ...] = (0.0, 0.99)
    num_inference_steps: int = 8
    discriminator_rate: float = 4.0
    discriminator_every: int = 2
    adversarial_weight: float = 1.0  # at 1 both terms pull equally strongly at the generator's output
    adversarial_after: int = 0  # samples for which the discriminator learns first: undecided, it would pull anywhere
    keyword_share: float = 0.2  # of each batch, if the pool has any
    keyword_reconstruction: float = 0.1  # weight of the true latents there
    smoothness: float = 100.0
    perturbation: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.discriminator_every < 1 or self.num_inference_steps < 1:
            raise ConversionError("discriminator_every and num_inference_steps must be at least 1")


def make_discriminator(unet: MobileDiffusionUNet2DConditionModel) -> MobileDiffusionUNet2DConditionModel:
    """A UNet with the same weights whose last layer gives one logit per latent cell, 0 at first."""
    model = MobileDiffusionUNet2DConditionModel(replace(unet.config, out_channels=1))
    weights = {name: value for name, value in unet.state_dict().items() if not name.startswith("conv_out.")}
    model.load_state_dict(weights, strict=False)
    nn.init.zeros_(model.conv_out.weight)
    nn.init.zeros_(model.conv_out.bias)
    return model


def random_levels(random: np.random.Generator, timestep: Tensor) -> Tensor:
    """Noise levels for the discriminator, (n) int64: logit-normal between 0 and each timestep."""
    share = 1 / (1 + np.exp(-random.standard_normal(len(timestep))))
    return (to_device(share, timestep.device) * timestep).long()


def beginnings(
    random: np.random.Generator,
    diffusion: Diffusion,
    predict: Callable[..., Tensor],
    noise: Tensor,
    text: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Where the generator begins: latents like `noise` (n, channels, height, width), and timesteps (n) int64.

    Every second begins at 999; the others at one of the trailing timesteps of `steps`, the same for all of them.

    Args:
        predict: takes noisy latents, timesteps and text.
    """
    times = trailing(steps)
    way = times[: 1 + random.integers(len(times))]
    noisy, timestep = noise.clone(), torch.full((len(noise),), times[0], device=noise.device)
    with torch.no_grad():
        noisy[1::2] = diffusion.walk(noise[1::2], lambda *state: predict(*state, text[1::2]), way)
    timestep[1::2] = way[-1]
    return noisy, timestep


def balanced_gradient(reconstruction: Tensor, adversarial: Tensor, output: Tensor, weight: float) -> Tensor:
    """The gradient of both losses at the generator's output, the second scaled to `weight` times the first's length."""
    true = torch.autograd.grad(reconstruction, output, retain_graph=True)[0]
    judged = torch.autograd.grad(adversarial, output, retain_graph=True)[0]
    return true + weight * true.norm() / judged.norm().clamp(min=1e-12) * judged


class _Game:
    """One update of both networks."""

    def __init__(self, config: UfogenTraining, context: Context, state: State, text_encoder: nn.Module) -> None:
        self.config, self.device, self.state, self.text_encoder = config, context.device, state, text_encoder
        self.batches = Batches(context, config)
        self.diffusion = Diffusion(context.device)
        has_keywords = bool((self.batches.pool.kind == KINDS.index("keyword")).any())
        self.batch_size = workers.share(config.batch_size)
        self.num_keywords = round(config.keyword_share * self.batch_size) if has_keywords else 0

    def update(self, step: int, random: np.random.Generator) -> Mapping[str, Tensor]:
        config = self.config
        sample, noise, ids = self._draw(random)
        with autocast(self.device, config.bf16):
            with torch.no_grad():
                text = self.text_encoder(ids)
            noisy, timestep = beginnings(
                random, self.diffusion, self._predict, noise, text, config.num_inference_steps
            )
            level = random_levels(random, timestep)
            velocity = self._predict(noisy, timestep, text)
            drawn = self.diffusion.predicted_sample(noisy, velocity, timestep)
            figures: dict[str, Tensor] = {}
            if step % config.discriminator_every == 0:
                # In float32: to bf16 the perturbation is no larger than rounding, and only a constant would be smooth.
                with autocast(self.device, False):
                    figures = self._teach_discriminator(sample, drawn.detach(), level, text.float())
            is_judged = step * config.batch_size >= config.adversarial_after
            logits = self._judge(drawn, level, text) if is_judged else None
        weight = torch.ones(len(ids), device=self.device)
        weight[: self.num_keywords] = config.keyword_reconstruction
        reconstruction = (weight * distances(drawn, sample, config.loss)).mean()
        figures["reconstruction"] = reconstruction.detach()
        if logits is None:
            self._descend("generator", reconstruction)
            return figures
        adversarial = softplus(-logits).mean()
        figures["adversarial"] = adversarial.detach()
        gradient = balanced_gradient(reconstruction, adversarial, drawn, config.adversarial_weight)
        self._descend("generator", (drawn * gradient.detach()).sum())
        return figures

    def _predict(self, noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        return self.state.modules["generator"](noisy, timestep, text).float()

    def _descend(self, name: str, loss: Tensor) -> None:
        optimizers = [optimizer for key, optimizer in self.state.optimizers.items() if key.startswith(name)]
        workers.descend(self.state.modules[name], optimizers, loss, self.config.clip_norm)

    def _draw(self, random: np.random.Generator) -> tuple[Tensor, ...]:
        """Latents, noise and ids, bare keywords first."""
        count = self.num_keywords
        chances = {
            kind: chance
            for kind, chance in zip(self.config.kinds, self.config.chances, strict=False)
            if kind != "keyword"
        }
        parts = [self.batches.draw(random, self.batch_size - count, chances)]
        if count:
            parts.insert(0, self.batches.draw(random, count, {"keyword": 1.0}))
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def _judge(self, sample: Tensor, level: Tensor, text: Tensor) -> Tensor:
        """Logits, (n, 1, height, width), of clean latents at a noise level; large is true."""
        noisy = self.diffusion.add_noise(sample, torch.randn_like(sample), level)
        return self.state.modules["discriminator"](noisy, level, text).float()

    def _teach_discriminator(self, sample: Tensor, drawn: Tensor, level: Tensor, text: Tensor) -> dict[str, Tensor]:
        config, discriminator = self.config, self.state.modules["discriminator"]
        noisy = self.diffusion.add_noise(sample, torch.randn_like(sample), level)
        shaken = noisy + config.perturbation * torch.randn_like(noisy)
        true, near = discriminator(torch.cat([noisy, shaken]), level.repeat(2), text.repeat(2, 1, 1)).float().chunk(2)
        false = self._judge(drawn, level, text)
        loss = softplus(-true).mean() + softplus(false).mean()
        smooth = config.smoothness * (true - near).square().mean()
        self._descend("discriminator", loss + smooth)
        figures = {"discriminator": loss, "true_logit": true.mean(), "false_logit": false.mean()}
        return {name: value.detach() for name, value in figures.items()}


def run(context: Context) -> None:
    """Leaves `ufogen/light`: the averaged generator."""
    config = context.config(UfogenTraining)
    model = load(context.folder / config.init).to(context.device)
    text_encoder = model.text_encoder.requires_grad_(False)
    torch.manual_seed(config.seed)
    discriminator = make_discriminator(load_unet(context.folder / config.discriminator)).to(context.device)
    modules: dict[str, Any] = {"generator": model.unet, "discriminator": discriminator}
    judging = muon_and_adamw(discriminator, config)  # AdamW alone takes several times the updates to decide
    for optimizer in judging.values():
        optimizer.param_groups[0]["rate_scale"] = config.discriminator_rate
    optimizers = {"generator": adamw(model.unet.parameters(), config)}
    optimizers |= {f"discriminator {name}": optimizer for name, optimizer in judging.items()}
    state = State(modules, optimizers)
    state.add_averages("generator")
    game = _Game(config, context, state, text_encoder)

    def write() -> None:
        write_light(context, TextToLatents(text_encoder, state.averages["generator"]))

    train(context, config, state, game.update, on_checkpoint=write)
