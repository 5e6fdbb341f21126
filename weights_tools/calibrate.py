"""Calibration: what the inputs of layers look like while a model makes pictures.

It runs a float bundle natively along the schedules that it stores and keeps, for every layer asked for, the range of
its inputs and two small pieces of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt import prompts as prompt_files
from mdrt.errors import ConversionError, InvalidArgumentError, NumericError
from mdrt.quantise import Layer
from mdrt.stages import Stages

DEFAULT_PROMPTS = Path(__file__).with_name("calibration_prompts.txt")

# A schedule of more steps passes through the same levels of noise as one of eight.
_MOST_STEPS = 8
_RECORDED_STEPS = 4
# Multiply-adds of the sampled pictures: every prompt for a small model, one picture of each schedule for a large one.
_MACS = 4e12
# Values that one run hands out together, in bytes, unless a single one is larger.
_FETCHED_BYTES = 256 * 2**20
_PIECE_PIXELS = 16  # a side; of tokens as many as such a square has
# Half of what a half can hold: activations of an int8 bundle are stored so, and other prompts may reach further.
_LARGEST = 65504 / 2


@dataclass
class Record:
    """The inputs of one layer: their range, widened to contain 0, and a piece of the first and of the last, as halves.

    A piece is (n, h, w, channels) or (n, tokens, channels).
    """

    low: float = 0.0
    high: float = 0.0
    pieces: list[NDArray[np.float16]] = field(default_factory=list)

    def add(self, array: NDArray[np.float32]) -> None:
        self.low = min(self.low, float(array.min()))
        self.high = max(self.high, float(array.max()))
        self.pieces = [*self.pieces[:1], _piece(array)]


Records = dict[str, dict[str, Record]]


def calibrate(
    bundle: str | PathLike[str],
    layers: Mapping[str, Mapping[str, Layer]],
    prompts: Sequence[str] | None = None,
    *,
    threads: int | None = None,
) -> Records:
    """Makes pictures and watches the inputs of layers.

    Args:
        bundle: a text-to-image bundle in fp32.
        layers: by component, the convolutions and matrix products to watch.
        prompts: None: those of DEFAULT_PROMPTS. A large model uses the first few only.
        threads: None: MDRT_THREADS, else the physical cores.

    Returns:
        A record by component and layer.

    Raises:
        InvalidArgumentError: there is no prompt.
        NumericError: an activation is NaN or infinite.
        ConversionError: an activation is too large for int8 bundles.
    """
    prompts = prompt_files.read(DEFAULT_PROMPTS) if prompts is None else list(prompts)
    if not prompts:
        raise InvalidArgumentError("there is no prompt to calibrate with")
    stages = Stages(bundle, threads=threads)
    watchers = {name: _Watcher(stages, name, watched) for name, watched in layers.items()}

    def watch(component: str, **feeds: NDArray[Any]) -> None:
        if component in watchers:
            watchers[component].watch(feeds)

    for number, (prompt, steps) in enumerate(_pictures(stages, prompts)):
        schedule, guidance = stages.schedule(steps)
        texts = ["", prompt] if guidance > 1 else [prompt]
        watch("text_encoder", input_ids=stages.ids(texts))
        context = stages.context(texts)
        recorded = set(np.linspace(0, len(schedule.rows) - 1, _RECORDED_STEPS).round().astype(int))
        *latents, last = stages.walk(prompt, stages.noise(number), schedule, guidance, number)
        for index in sorted(recorded):
            watch("unet", **stages.unet_feeds(latents[index], schedule.rows[index, 0], context))
        watch("vae_decoder", **stages.decoder_feeds(last))
    return {name: watcher.records for name, watcher in watchers.items()}


def _pictures(stages: Stages, prompts: Sequence[str]) -> list[tuple[str, int]]:
    """Prompt and number of steps of each picture: prompts in order, the stored numbers of steps in turn."""
    counts = [entry["num_inference_steps"] for entry in stages.config["schedules"]]
    counts = [count for count in counts if count <= _MOST_STEPS] or [min(counts)]
    latent, context = stages.noise(0), stages.context([prompts[0]])
    macs = _MOST_STEPS * stages.macs("unet", **stages.unet_feeds(latent, 0, context))
    macs += stages.macs("vae_decoder", **stages.decoder_feeds(latent))
    number = max(len(counts), min(len(prompts), int(_MACS / max(macs, 1.0))))
    return [(prompts[index % len(prompts)], counts[index % len(counts)]) for index in range(number)]


class _Watcher:
    """Records the inputs of layers of one component, a few values in each run, so that they fit into memory."""

    def __init__(self, stages: Stages, component: str, layers: Mapping[str, Layer]) -> None:
        self._stages = stages
        self._component = component
        self.records: dict[str, Record] = {name: Record() for name in layers}
        # A value may be the input of several layers, and a layer used at several places.
        self._readers: dict[str, list[str]] = {}
        for name, layer in layers.items():
            for node in layer.nodes:
                self._readers.setdefault(node.inputs[0], []).append(name)

    def watch(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        for value in feeds.keys() & self._readers.keys():
            self._record(value, feeds[value])
        for value, array in self._inner_values(feeds):
            self._record(value, array)

    def _inner_values(self, feeds: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[np.float32]]]:
        names = [name for name in self._readers if name not in feeds]
        count = 1
        while names:
            arrays = self._stages.run(self._component, names[:count], **feeds)
            yield from arrays.items()
            # Neighbours are alike; a resize makes them up to four times as large.
            largest = max(array.nbytes for array in arrays.values())
            names, count = names[count:], max(1, _FETCHED_BYTES // (4 * largest))

    def _record(self, value: str, array: NDArray[np.float32]) -> None:
        where = f"calibration: the input {value} of layer {self._readers[value][0]} of the {self._component}"
        if not np.isfinite(array).all():
            raise NumericError(f"{where} holds NaN or infinity; check the checkpoint")
        if (largest := float(np.abs(array).max())) > _LARGEST:
            raise ConversionError(
                f"{where} reaches {largest:g}; int8 bundles keep activations as halves, which end at 65504: use fp32"
            )
        for name in self._readers[value]:
            self.records[name].add(array)


def _piece(array: NDArray[np.float32]) -> NDArray[np.float16]:
    """The middle of an image, or the first tokens, of the last row of a batch."""
    row = array[-1:]
    if array.ndim == 4:
        top, left = (max(0, size - _PIECE_PIXELS) // 2 for size in array.shape[1:3])
        row = row[:, top : top + _PIECE_PIXELS, left : left + _PIECE_PIXELS]
    elif array.ndim == 3:
        row = row[:, : _PIECE_PIXELS**2]
    return row.astype(np.float16)
