"""The arithmetic of diffusion in PyTorch: noise levels, v-prediction, DDIM steps, classifier-free guidance.

The levels are those that pipelines are shipped with: `scaled_linear` betas rescaled to zero terminal SNR, so that
timestep 999 is noise alone. Ho et al., arXiv 2006.11239; Lin et al., arXiv 2305.08891; Salimans and Ho, arXiv
2202.00512 (v); Song et al., arXiv 2010.02502 (DDIM).
"""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mdrt.schedulers import DDIMScheduler
from weights_tools.new import SCHEDULER

NUM_TRAIN_TIMESTEPS = 1000
CLEAN = -1  # as a timestep: no noise at all
Predict = Callable[[Tensor, Tensor], Tensor]  # noisy latents (n, c, h, w), timesteps (n) -> v (n, c, h, w)


class Diffusion:
    """Noise levels on one device.

    Latents are (n, channels, height, width), timesteps (n) int64, 0 to 999 or `CLEAN`.
    """

    def __init__(self, device: str = "cpu") -> None:
        alphas_cumprod = torch.from_numpy(DDIMScheduler.from_config(SCHEDULER).alphas_cumprod).double()
        levels = torch.cat([alphas_cumprod, torch.ones(1)])  # so that CLEAN, -1, finds the last
        self._signal, self._noise = (root.float().to(device) for root in (levels.sqrt(), (1 - levels).sqrt()))

    def signal(self, timestep: Tensor) -> Tensor:
        """The factor of the clean latents, (n, 1, 1, 1)."""
        return self._signal[timestep][:, None, None, None]

    def noise(self, timestep: Tensor) -> Tensor:
        """The factor of the noise, (n, 1, 1, 1); its square and that of `signal` add up to 1."""
        return self._noise[timestep][:, None, None, None]

    def add_noise(self, sample: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Clean latents at a noise level."""
        return self.signal(timestep) * sample + self.noise(timestep) * noise

    def velocity(self, sample: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What a model predicts: v = signal * noise - noise level * sample."""
        return self.signal(timestep) * noise - self.noise(timestep) * sample

    def predicted_sample(self, noisy: Tensor, velocity: Tensor, timestep: Tensor) -> Tensor:
        """The clean latents that a prediction means."""
        return self.signal(timestep) * noisy - self.noise(timestep) * velocity

    def step(self, noisy: Tensor, velocity: Tensor, timestep: Tensor, following: Tensor) -> Tensor:
        """The DDIM step to the level of `following`."""
        noise = self.signal(timestep) * velocity + self.noise(timestep) * noisy
        return self.add_noise(self.predicted_sample(noisy, velocity, timestep), noise, following)

    def signal_to_noise(self, timestep: Tensor) -> Tensor:
        """SNR, the ratio of variances, (n, 1, 1, 1)."""
        return (self.signal(timestep) / self.noise(timestep)).square()

    def walk(self, noisy: Tensor, predict: Predict, timesteps: Sequence[int]) -> Tensor:
        """Latents at the last of falling timesteps, from those at the first, by a DDIM step to each."""
        for now, following in itertools.pairwise(timesteps):
            timestep, target = (torch.full((len(noisy),), value, device=noisy.device) for value in (now, following))
            noisy = self.step(noisy, predict(noisy, timestep), timestep, target)
        return noisy

    def denoise(self, noise: Tensor, predict: Predict, num_inference_steps: int) -> Tensor:
        """Clean latents from pure noise by DDIM at trailing timesteps."""
        return self.walk(noise, predict, [*trailing(num_inference_steps), CLEAN])


def trailing(num_inference_steps: int) -> Sequence[int]:
    """The timesteps of the model calls, falling from 999.

    Raises:
        InvalidArgumentError: the number is not from 1 to 1000.
    """
    return DDIMScheduler.from_config(SCHEDULER).timesteps(num_inference_steps).tolist()


def guided(
    unet: Callable[[Tensor, Tensor, Tensor], Tensor],
    noisy: Tensor,
    timestep: Tensor,
    text: Tensor,
    empty: Tensor,
    guidance_scale: float,
) -> Tensor:
    """Classifier-free guidance, Ho and Salimans, arXiv 2207.12598: away from what the empty caption predicts.

    Args:
        text: (n, tokens, width) of the captions.
        empty: (1, tokens, width) of the empty caption.
        guidance_scale: 1 is no guidance, and one call of the UNet instead of two.
    """
    if guidance_scale == 1:
        return unet(noisy, timestep, text)
    both = unet(noisy.repeat(2, 1, 1, 1), timestep.repeat(2), torch.cat([text, empty.expand_as(text)]))
    with_text, without = both.chunk(2)
    return without + guidance_scale * (with_text - without)
