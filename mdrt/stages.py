"""A text-to-image bundle stage by stage, for those who look inside: arrays are channels last, as in the file."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt import _core, schedulers
from mdrt.errors import InvalidArgumentError, interruptible

Array = NDArray[np.float32]

_DONE = 3  # the last stage that a job reports


class Stages:
    """The stages of a bundle, opened once.

    Attributes:
        path: the file.
        model: the opened bundle.
        config: its `pipeline` document.
        context_channels: what the text encoder gives for a token.

    Raises:
        FileError, BundleError, VersionError: the file cannot be read or is not a usable bundle.
        InvalidArgumentError: the bundle is no text-to-image model.
    """

    def __init__(self, path: str | PathLike[str], *, threads: int | None = None, max_memory: int | None = None) -> None:
        self.path = os.fspath(path)
        self.model = _core.Model(self.path, threads=threads or 0, max_memory=max_memory or 0)
        document = json.loads(self.model.metadata())
        if "pipeline" not in document:
            raise InvalidArgumentError(
                f"{self.path} is not a text-to-image model; it has {', '.join(document['components'])}"
            )
        self.config: dict[str, Any] = document["pipeline"]
        ((_, _, shape),) = self.model.outputs("text_encoder")
        self.context_channels = shape[-1]

    def noise(self, seed: int) -> Array:
        """Start noise of the model's own size, as pictures with this seed begin: (1, h, w, C)."""
        factor = self.config["vae_scale_factor"]
        height, width = self.config["height"] // factor, self.config["width"] // factor
        channels = self.config["latent_channels"]
        nchw = _core.philox_normal(seed, 0, channels * height * width).reshape(1, channels, height, width)
        return np.ascontiguousarray(nchw.transpose(0, 2, 3, 1))

    def ids(self, prompts: Sequence[str]) -> NDArray[np.int32]:
        """Token ids (prompts, tokens)."""
        return np.array([self.model.tokenize(prompt) for prompt in prompts], dtype=np.int32)

    def run(self, component: str, outputs: Sequence[str], **feeds: NDArray[Any]) -> dict[str, Array]:
        """Outputs or inner values of one component by name."""
        with interruptible():
            return self.model.run(component, feeds, outputs)

    def macs(self, component: str, **feeds: NDArray[Any]) -> float:
        """Multiply-adds of one run."""
        match = re.search(r"([\d.]+) GMAC", self.model.describe_plan(component, feeds))
        return 1e9 * float(match[1]) if match else 0.0

    def context(self, prompts: Sequence[str]) -> Array:
        """What the text encoder makes of prompts: (prompts, tokens, width)."""
        return self.run("text_encoder", ["last_hidden_state"], input_ids=self.ids(prompts))["last_hidden_state"]

    def unet_feeds(self, latent: Array, timestep: float, context: Array) -> dict[str, Array]:
        """The inputs of a model call: one latent (1, h, w, C) for every row of a context (n, tokens, width)."""
        count = len(context)
        return {
            "sample": np.repeat(latent, count, axis=0),
            "timestep": np.full(count, timestep, dtype=np.float32),
            "encoder_hidden_states": context,
        }

    def decoder_feeds(self, latent: Array) -> dict[str, Array]:
        """The input of the decoder for a latent of unit variance (1, h, w, C)."""
        scaled = latent.astype(np.float64) / self.config["scaling_factor"] + self.config["shift_factor"]
        return {"latent_sample": scaled.astype(np.float32)}

    def schedule(self, num_inference_steps: int) -> tuple[schedulers.Schedule, float]:
        """The schedule for a number of steps, and the guidance scale that the bundle states for it or the nearest."""
        stored = self.config["schedules"]
        nearest = min(stored, key=lambda entry: abs(entry["num_inference_steps"] - num_inference_steps))
        rows = schedulers.make_rows(self.config["scheduler_config"], nearest["scheduler"], num_inference_steps)
        return rows, float(nearest["guidance_scale"])

    def walk(
        self, prompt: str, noise: Array, schedule: schedulers.Schedule, guidance_scale: float, seed: int
    ) -> Iterator[Array]:
        """The latent (1, h, w, C) before every model call of a schedule, then the final one, by the library's sampler.

        Every row is a job of its own, so noise that a row adds is drawn from `seed` plus its number.

        Raises:
            InvalidArgumentError: a row needs what an earlier one kept.
            NumericError: the model made NaN or infinity.
        """
        latent = (noise.astype(np.float64) * schedule.init_noise_sigma).astype(np.float32)
        yield latent
        for number, row in enumerate(schedule.rows):
            latent = self._step(prompt, latent, row, guidance_scale, seed + number)
            yield latent

    def _step(self, prompt: str, latent: Array, row: NDArray[np.float64], guidance_scale: float, seed: int) -> Array:
        factor = self.config["vae_scale_factor"]
        with interruptible():
            job = _core.Job(
                self.model,
                prompt,
                height=latent.shape[1] * factor,
                width=latent.shape[2] * factor,
                latents=np.ascontiguousarray(latent.transpose(0, 3, 1, 2)),
                schedule=row[np.newaxis, :14],
                guidance_scale=guidance_scale,
                seed=seed,
                latent_only=True,
            )
            try:
                while job.advance()[0] != _DONE:
                    pass
                return np.ascontiguousarray(job.latents().transpose(0, 2, 3, 1))
            finally:
                job.close()
