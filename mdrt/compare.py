"""How far one bundle is from another: the same inputs through both, stage by stage and from prompt to picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import InvalidArgumentError
from mdrt.pipeline import Pipeline
from mdrt.stages import Stages

PROMPTS = ("red apple", "tiger on a blue background", "a lighthouse by the sea", "two dogs and a cat")
MAX_PSNR = 99.0  # dB; also of equal arrays, because JSON knows no infinity

# What must be equal in two bundles, so that the same latents mean the same picture in both.
_SHARED = ("latent_channels", "vae_scale_factor", "scaling_factor", "shift_factor", "scheduler_config")


def psnr(a: NDArray[Any], b: NDArray[Any], peak: float | None = None) -> float:
    """Peak signal-to-noise ratio in dB, at most MAX_PSNR; `peak` is by default the range of the values of `a`."""
    wide = a.astype(np.float64)
    error = math.sqrt(np.mean((wide - b) ** 2))
    if peak is None:
        peak = float(np.ptp(wide))
    if error == 0:
        return MAX_PSNR
    return min(MAX_PSNR, 20 * math.log10(peak / error)) if peak > 0 else 0.0


def run(
    a: str | PathLike[str],
    b: str | PathLike[str],
    *,
    prompts: Sequence[str] | None = None,
    num_inference_steps: int | None = None,
    seed: int = 0,
    threads: int | None = None,
    max_memory: int | None = None,
) -> dict[str, Any]:
    """Compares bundle `b` with bundle `a`, which gives the inputs of every stage, the sizes and the guidance.

    Args:
        a, b: bundles (`.mdrt`).
        prompts: None: PROMPTS. Picture i begins with the noise of `seed` + i in both.
        num_inference_steps: model calls of a picture; None: the default of `a`.
        threads, max_memory: as in `Pipeline`.

    Returns:
        `stages`: for text encoder, UNet (at all latents and timesteps of the sampling with `a`) and decoder (at the
        latents that `a` ends with) the mean and the worst PSNR in dB, relative to the range of the values in `a`;
        `pictures`: prompt, seed and PSNR of each; `mean` and `worst` of the pictures.

    Raises:
        InvalidArgumentError: the two do not fit together, one is no text-to-image model, or there is no prompt.
        FileError, BundleError, VersionError: a file cannot be read or is not a usable bundle.
        NumericError: a model made NaN or infinity.
    """
    prompts = list(PROMPTS if prompts is None else prompts)
    if not prompts:
        raise InvalidArgumentError("there is no prompt to compare with")
    models = [Stages(path, threads=threads, max_memory=max_memory) for path in (a, b)]
    steps = num_inference_steps or int(models[0].config["schedules"][0]["num_inference_steps"])
    _check_fit(models, prompts, steps)
    stages = _compare_stages(models, prompts, steps, seed)
    pictures = _compare_pictures(models, prompts, steps, seed, threads, max_memory)
    return {
        "a": models[0].path,
        "b": models[1].path,
        "num_inference_steps": steps,
        "guidance_scale": models[0].schedule(steps)[1],
        "stages": {name: {**_summary(values), "count": len(values)} for name, values in stages.items()},
        "pictures": pictures,
        **_summary([picture["psnr"] for picture in pictures]),
    }


def _check_fit(models: Sequence[Stages], prompts: Sequence[str], steps: int) -> None:
    a, b = models

    def refuse(what: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{a.path} and {b.path} cannot be compared: {what}")

    for key in _SHARED:
        if a.config[key] != b.config[key]:
            raise refuse(f"{key} is {a.config[key]} and {b.config[key]}")
    if not np.array_equal(a.schedule(steps)[0].rows, b.schedule(steps)[0].rows):
        raise refuse(f"their schedules for {steps} steps differ")
    if not np.array_equal(a.ids(prompts), b.ids(prompts)):
        raise refuse("their tokenizers read the prompts differently")
    if a.context_channels != b.context_channels:
        raise refuse(f"their text encoders give {a.context_channels} and {b.context_channels} channels")


def _compare_stages(models: Sequence[Stages], prompts: Sequence[str], steps: int, seed: int) -> dict[str, list[float]]:
    """The PSNR of every call of every stage; each gets what the first model's sampling leads to."""
    first = models[0]
    schedule, guidance = first.schedule(steps)
    found: dict[str, list[float]] = {"text_encoder": [], "unet": [], "vae_decoder": []}

    def add(component: str, output: str, **feeds: NDArray[Any]) -> None:
        a, b = (model.run(component, [output], **feeds)[output] for model in models)
        found[component].append(psnr(a, b))

    for number, prompt in enumerate(prompts):
        texts = ["", prompt] if guidance > 1 else [prompt]
        add("text_encoder", "last_hidden_state", input_ids=first.ids([prompt]))
        context = first.context(texts)
        *latents, last = first.walk(prompt, first.noise(seed + number), schedule, guidance, seed + number)
        for latent, row in zip(latents, schedule.rows, strict=True):
            add("unet", "out_sample", **first.unet_feeds(latent, row[0], context))
        add("vae_decoder", "sample", **first.decoder_feeds(last))
    return found


def _compare_pictures(
    models: Sequence[Stages],
    prompts: Sequence[str],
    steps: int,
    seed: int,
    threads: int | None,
    max_memory: int | None,
) -> list[dict[str, Any]]:
    guidance = models[0].schedule(steps)[1]
    width, height = models[0].config["width"], models[0].config["height"]
    images = []
    for model in models:
        with Pipeline(model.path, threads=threads, max_memory=max_memory) as pipe:
            images.append(
                pipe(
                    prompts,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    width=width,
                    height=height,
                    seed=seed,
                )
            )
    return [
        {"prompt": prompt, "seed": seed + number, "psnr": psnr(np.asarray(a), np.asarray(b), peak=255)}
        for number, (prompt, a, b) in enumerate(zip(prompts, *images, strict=True))
    ]


def _summary(values: Sequence[float]) -> dict[str, float]:
    return {"mean": sum(values) / len(values), "worst": min(values)}


def text(results: dict[str, Any]) -> str:
    """`run` for people."""
    steps, guidance = results["num_inference_steps"], results["guidance_scale"]
    lines = [
        f"{results['b']} against {results['a']}",
        f"{len(results['pictures'])} prompts, {steps} steps, guidance {guidance:g}; PSNR in dB",
        f"{'':<14}{'mean':>6}{'worst':>7}",
    ]
    for name, stage in [*results["stages"].items(), ("pictures", results)]:
        lines.append(f"{name:<14}{stage['mean']:6.1f}{stage['worst']:7.1f}")
    lines += [f"{picture['psnr']:6.1f}  {picture['prompt']}" for picture in results["pictures"]]
    return "\n".join(lines)
