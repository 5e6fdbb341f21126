"""Pictures of a model from given noise: of a pipeline directory in PyTorch, or of a bundle in mdrt."""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

_BATCH = 16


class Drawer(Protocol):
    """A model that draws; `shape` is that of one start noise: channels, height, width."""

    shape: tuple[int, int, int]

    def draw(
        self, prompts: Sequence[str], noise: NDArray[np.float32], num_inference_steps: int, guidance_scale: float
    ) -> NDArray[np.uint8]:
        """Pictures (n, height, width, 3) of prompts from noise (n, *shape)."""


class TorchDrawer:
    """A pipeline directory in float32 PyTorch.

    Raises:
        FileError, ConversionError: the directory or a file is missing or unusable.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        from weights_tools.modules import load_decoder
        from weights_tools.training.networks import TOKENIZER, load
        from weights_tools.training.tokenizer import Tokenizer

        self._device = device
        self._model, self._decoder = load(path).to(device), load_decoder(path).to(device)
        self._tokenizer = Tokenizer(path / TOKENIZER)
        config = self._model.unet.config
        self.shape = (config.in_channels, config.sample_size, config.sample_size)

    def draw(
        self, prompts: Sequence[str], noise: NDArray[np.float32], num_inference_steps: int, guidance_scale: float
    ) -> NDArray[np.uint8]:
        import torch

        with torch.no_grad():
            batches = [slice(start, start + _BATCH) for start in range(0, len(prompts), _BATCH)]
            parts = [self._draw(prompts[here], noise[here], num_inference_steps, guidance_scale) for here in batches]
        return np.concatenate(parts)

    def _draw(
        self, prompts: Sequence[str], noise: NDArray[np.float32], steps: int, guidance_scale: float
    ) -> NDArray[np.uint8]:
        import torch

        from weights_tools.training.diffusion import Diffusion, guided
        from weights_tools.training.vae import to_pictures

        ids = torch.from_numpy(self._tokenizer.encode([*prompts, ""])).long().to(self._device)
        text = self._model.text_encoder(ids)

        def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
            return guided(self._model.unet, noisy, timestep, text[:-1], text[-1:], guidance_scale)

        latents = Diffusion(self._device).denoise(torch.from_numpy(noise).to(self._device), predict, steps)
        config = self._decoder.config
        return to_pictures(self._decoder.decode(latents / config.scaling_factor + (config.shift_factor or 0.0)))


class BundleDrawer:
    """A bundle, `.mdrt`; None is the built-in model. Errors as `mdrt.Pipeline`."""

    def __init__(self, path: Path | None) -> None:
        from mdrt.pipeline import Pipeline

        self._pipeline = Pipeline(path)
        config = self._pipeline.config
        factor = config["vae_scale_factor"]
        self.shape = (config["latent_channels"], config["height"] // factor, config["width"] // factor)

    def draw(
        self, prompts: Sequence[str], noise: NDArray[np.float32], num_inference_steps: int, guidance_scale: float
    ) -> NDArray[np.uint8]:
        pictures = self._pipeline(
            list(prompts),
            latents=noise,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
        )
        return np.stack([np.asarray(picture) for picture in pictures])
