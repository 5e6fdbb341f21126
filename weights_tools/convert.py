"""Converts a diffusers pipeline directory into a bundle, tensor by tensor."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import mdrt
from mdrt.bundle import write_bundle
from mdrt.errors import ConversionError, InvalidArgumentError, WriteError
from mdrt.formats import check_format
from mdrt.schedulers import Schedule, make_rows, scheduler_name
from weights_tools.calibrate import calibrate
from weights_tools.checkpoint import Checkpoint
from weights_tools.components import Networks, load_networks
from weights_tools.quantise import Choice, candidates, choose
from weights_tools.vocabulary import Vocabulary, read_vocabulary

_STEPS = (20, 1, 2, 4, 8)
_GUIDANCE_SCALE = 7.5
_PICTURE_MULTIPLE = 8

Value = TypeVar("Value")


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    format: str = "fp32",
    with_encoder: bool = False,
    steps: Sequence[int] | None = None,
    scheduler: Sequence[str] | None = None,
    guidance_scale: Sequence[float] | None = None,
    size: tuple[int, int] | None = None,
    license: str = "",
    calibration_prompts: Sequence[str] | None = None,
    max_error: Mapping[str, float] | None = None,
    threads: int | None = None,
) -> list[Choice] | None:
    """Writes the bundle of a checkpoint; memory for one tensor at a time is needed.

    For int8 the model runs: an fp32 bundle is written beside the output, makes pictures, and is removed.

    Args:
        source: a diffusers pipeline directory.
        output: the `.mdrt` file, replaced only when all went well.
        format: "fp32"; "fp16" for panels and tables; "int8" for the layers that calibration finds fit, fp16 for others.
        with_encoder: also the component `vae_encoder`.
        steps: numbers of model calls whose schedules are stored, the first the default; None: 20, 1, 2, 4 and 8.
        scheduler: "ddim" or "ufogen", for all counts or one for each; None: the checkpoint's.
        guidance_scale: for all counts or one for each; None: 7.5, and 1 for one call.
        size: width and height of the pictures in pixels; None: what the checkpoint was made for.
        license: of the weights, as the bundle's provenance states it.
        calibration_prompts: what int8 is calibrated with; None: prompts of our own.
        max_error: of int8, by component: the relative RMSE from which on a layer is fp16; default: 0.03.
        threads: of calibration; None: MDRT_THREADS, else the physical cores.

    Returns:
        For int8 how the format of each layer was found.

    Raises:
        ConversionError: the checkpoint is incomplete, contradicts its configuration or is of another kind.
        UnsupportedError: its scheduler is not here.
        InvalidArgumentError: an argument is out of range, or a weight does not fit into the format.
        NumericError: the model makes NaN or infinity when it is calibrated.
        FileError: a file cannot be read or written.
    """
    check_format(format)
    if calibration_prompts is not None and format != "int8":
        raise InvalidArgumentError(f"only int8 is calibrated, not {format}")
    checkpoint = Checkpoint(source)
    networks = load_networks(checkpoint, with_encoder)
    _check_max_error(max_error or {}, networks)
    vocabulary = read_vocabulary(checkpoint.path / "tokenizer", networks.text_encoder.max_position_embeddings)
    if len(vocabulary.tokens) > networks.text_encoder.vocab_size:
        raise ConversionError(
            f"the tokenizer has {len(vocabulary.tokens)} tokens, but the text encoder's vocab_size is "
            f"{networks.text_encoder.vocab_size}"
        )
    config = _scheduler_config(checkpoint.json("scheduler/scheduler_config.json"))
    entries, rows = _schedules(config, steps, scheduler, guidance_scale)
    width, height = _picture_size(networks, size)
    write = partial(
        write_bundle,
        graphs={name: network.graph for name, network in networks.components.items()},
        weights={name: network.weights for name, network in networks.components.items()},
        pipeline={
            "width": width,
            "height": height,
            "vae_scale_factor": networks.vae.scale_factor,
            "latent_channels": networks.vae.latent_channels,
            "scaling_factor": networks.vae.scaling_factor,
            "shift_factor": networks.vae.shift_factor or 0.0,
            "noise": "philox",
            "scheduler_config": config,
            "schedules": entries,
        },
        schedules={count: schedule.rows for count, schedule in rows.items()},
        tokenizer=_tokenizer_document(vocabulary),
        vocabulary="".join(f"{token}\n" for token in vocabulary.tokens).encode(),
        merges=np.array(vocabulary.merges, dtype=np.int32).reshape(-1, 2),
        provenance={
            "source": checkpoint.path.resolve().name,
            "license": license,
            "converter": f"mdrt {mdrt.__version__}",
        },
    )
    if format != "int8":
        write(output, formats=format)
        return None
    with _beside(output) as folder:
        write(folder / "fp32.mdrt", formats="fp32")
        records = calibrate(folder / "fp32.mdrt", candidates(networks.components), calibration_prompts, threads=threads)
    formats, choices = choose(networks.components, records, max_error)
    write(output, formats=formats)
    return choices


@contextmanager
def _beside(output: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder for large files where the output will be, which vanishes with all that is in it."""
    parent = Path(output).parent
    try:
        folder = tempfile.TemporaryDirectory(prefix=".mdrt-", dir=parent)
    except OSError as error:
        raise WriteError(f"cannot write to {parent}: {error.strerror}") from error
    with folder as name:
        yield Path(name)


def _schedules(
    config: Mapping[str, Any],
    steps: Sequence[int] | None,
    schedulers: Sequence[str] | None,
    guidance_scales: Sequence[float] | None,
) -> tuple[list[dict[str, Any]], dict[int, Schedule]]:
    """The entries of the pipeline document, and the schedules by number of steps."""
    counts = list(_STEPS if steps is None else steps)
    if not counts or len(set(counts)) != len(counts):
        raise InvalidArgumentError(f"steps are {counts}; different numbers are needed")
    names = _for_each("scheduler", counts, schedulers or [scheduler_name(config)])
    default = [_GUIDANCE_SCALE if count > 1 else 1.0 for count in counts]
    scales = _for_each("guidance_scale", counts, guidance_scales or default)
    schedules = {count: make_rows(config, name, count) for count, name in zip(counts, names, strict=True)}
    entries = [
        {
            "num_inference_steps": count,
            "scheduler": name,
            "guidance_scale": float(scale),
            "init_noise_sigma": schedules[count].init_noise_sigma,
        }
        for count, name, scale in zip(counts, names, scales, strict=True)
    ]
    return entries, schedules


def _for_each(name: str, counts: Sequence[int], values: Sequence[Value]) -> list[Value]:
    """One value serves all counts."""
    if len(values) not in (1, len(counts)):
        raise InvalidArgumentError(
            f"{len(values)} values of {name} for {len(counts)} counts of steps; give one, or one for each"
        )
    return list(values) * len(counts) if len(values) == 1 else list(values)


def _check_max_error(max_error: Mapping[str, float], networks: Networks) -> None:
    for component, limit in max_error.items():
        if component not in networks.components or not limit >= 0:
            raise InvalidArgumentError(
                f"max_error is {limit} for {component}; it gives {', '.join(networks.components)} a number from 0 on"
            )


def _scheduler_config(document: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as bundles keep it: flat."""
    config = {key: value for key, value in document.items() if value is not None}
    for key, value in config.items():
        if not isinstance(value, (str, int, float)):
            raise ConversionError(
                f"scheduler/scheduler_config.json: {key} is a {type(value).__name__}; "
                "only words, numbers and booleans can be kept"
            )
    return config


def _picture_size(networks: Networks, size: tuple[int, int] | None) -> tuple[int, int]:
    if size is None:
        side = networks.unet.sample_size * networks.vae.scale_factor
        size = (side, side)
    for value in size:
        if value < 1 or value % _PICTURE_MULTIPLE or value % networks.vae.scale_factor:
            raise InvalidArgumentError(
                f"the size {size[0]}x{size[1]} does not fit: width and height must be multiples of "
                f"{max(_PICTURE_MULTIPLE, networks.vae.scale_factor)}; state one with --size"
            )
    return size


def _tokenizer_document(vocabulary: Vocabulary) -> dict[str, int]:
    return {
        "vocab_size": len(vocabulary.tokens),
        "num_merges": len(vocabulary.merges),
        "model_max_length": vocabulary.model_max_length,
        "bos_token_id": vocabulary.bos_token_id,
        "eos_token_id": vocabulary.eos_token_id,
        "pad_token_id": vocabulary.pad_token_id,
        "unk_token_id": vocabulary.unk_token_id,
    }
