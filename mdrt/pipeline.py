"""From a prompt to a picture: the native job, with progress, cancelling and diffusers' words."""

from __future__ import annotations

import json
import logging
import math
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mdrt import _core, models
from mdrt.errors import Cancelled, InvalidArgumentError, interruptible

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

OutputType = Literal["pil", "np", "latent"]
STAGES = ("text_encoder", "unet", "vae_decoder", "done")

_MAX_STEPS = 1000
_MAX_PIXELS_PER_SIDE = 65536


@dataclass(frozen=True)
class Event:
    """Progress: model call `step` of `total`, picture `index` of `count`; `fraction` of the whole work, 0 to 1.

    `image` is None but in the last event of a stream, where it is what the call returns.
    """

    stage: str
    step: int
    total: int
    fraction: float
    index: int = 0
    count: int = 1
    image: Any = None


@dataclass(frozen=True)
class _Request:
    """Everything that determines one picture."""

    prompt: str
    negative_prompt: str
    num_inference_steps: int
    scheduler: str
    guidance_scale: float
    width: int
    height: int
    seed: int
    latents: NDArray[np.float32] | None = field(default=None, repr=False)  # (1, C, h, w)
    schedule: NDArray[np.float64] | None = field(default=None, repr=False)  # (model calls, 14)
    init_noise_sigma: float = 1.0


class Pipeline:
    """A text-to-image model, opened once and used for many pictures.

    Args:
        path: a bundle (`.mdrt`); None is the built-in model.
        threads: how many to compute with; None: the environment's MDRT_THREADS, else the physical cores.
        max_memory: limit in bytes for anonymous memory (the mapped weights are not counted); None: what is available.

    Raises:
        FileError, BundleError, VersionError: the file cannot be read or is not a usable bundle.
        InvalidArgumentError: an argument is out of range, or the bundle is no text-to-image model.
    """

    def __init__(
        self,
        path: str | PathLike[str] | None = None,
        *,
        threads: int | None = None,
        max_memory: int | None = None,
    ) -> None:
        self.path = os.fspath(path) if path is not None else models.builtin_path()
        self.last_seed: int | None = None
        self._model: _core.Model | None = _core.Model(
            self.path,
            threads=_integer("threads", threads, 1, 1024) or 0,
            max_memory=_integer("max_memory", max_memory, 1, 2**62) or 0,
        )
        document = json.loads(self._model.metadata())
        if "pipeline" not in document:
            raise InvalidArgumentError(
                f"{self.path} is not a text-to-image model (it has {', '.join(document['components'])}); "
                "use mdrt.Session to run one component"
            )
        self.config: dict[str, Any] = document["pipeline"]
        self._max_tokens = int(document["tokenizer"]["model_max_length"])
        self._cancel = threading.Event()
        self._lock = threading.Lock()
        self._owner: tuple[int, int] | None = None  # process and thread that hold the lock

    def __repr__(self) -> str:
        state = "closed" if self._model is None else f"{self.config['width']}x{self.config['height']}"
        return f"Pipeline({self.path!r}, {state})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the memory, at the end of the picture that another thread may be making. May be called twice."""
        self._model = None

    def cancel(self) -> None:
        """Makes the running call raise `Cancelled` within a fraction of a second. From any thread; else no effect."""
        model = self._model
        if self._owner is not None and model is not None:
            self._cancel.set()
            model.cancel()

    def __call__(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        num_images_per_prompt: int = 1,
        latents: NDArray[np.floating[Any]] | None = None,
        output_type: OutputType = "pil",
        callback: Callable[[Event], object] | None = None,
    ) -> Any:
        """Makes pictures, one after another: image i of prompt j uses seed + j*num_images_per_prompt + i.

        Args:
            prompt: one text or several.
            negative_prompt: what guidance leads away from; of use with a guidance scale above 1 only.
            num_inference_steps: model calls; None: the model's own.
            guidance_scale: of classifier-free guidance; 1 or less makes no second model call; None: the model's own.
            width, height: pixels, multiples of the model's scale factor (8); None: the model's own.
            seed: 0 to 2**64 - 1; None: a random one, to be found in `last_seed` and in the picture's `info`.
            num_images_per_prompt: pictures of each prompt.
            latents: start noise, (N, C, height/8, width/8) for N pictures or 1 for all, unit variance.
            output_type: "pil"; "np": (height, width, 3) float32, 0 to 1; "latent": (1, C, h, w) float32, unit variance.
            callback: called with an `Event` many times a second on the calling thread; returning False cancels.

        Returns:
            One picture, or a list of them for a list of prompts or several pictures.

        Raises:
            InvalidArgumentError: an argument is not acceptable.
            Cancelled: by `cancel`, the callback, or Ctrl-C (`Interrupted`). The pipeline stays usable.
            MemoryLimitError: the size needs more than `max_memory`.
            NumericError: the model made NaN or infinity.
        """
        image = None
        with (
            interruptible(),
            closing(
                self.stream(
                    prompt,
                    negative_prompt=negative_prompt,
                    num_inference_steps=num_inference_steps,
                    guidance_scale=guidance_scale,
                    width=width,
                    height=height,
                    seed=seed,
                    num_images_per_prompt=num_images_per_prompt,
                    latents=latents,
                    output_type=output_type,
                )
            ) as events,
        ):
            for event in events:
                image = event.image
                if callback is not None and callback(event) is False and image is None:
                    raise Cancelled("the callback cancelled the call")
        return image

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        negative_prompt: str = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        seed: int | None = None,
        num_images_per_prompt: int = 1,
        latents: NDArray[np.floating[Any]] | None = None,
        output_type: OutputType = "pil",
    ) -> Generator[Event, None, None]:
        """The same as calling, but yields the events; the last one has the result in `.image`.

        Work is done while the iterator is advanced; dropping it ends the call. Arguments and errors as in `__call__`.
        """
        model = self._open_model()
        if output_type not in ("pil", "np", "latent"):
            raise InvalidArgumentError(f"output_type {output_type!r} is not one of pil, np, latent")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not prompts:
            raise InvalidArgumentError("there is no prompt")
        copies = _integer("num_images_per_prompt", num_images_per_prompt, 1, 10**6) or 1
        count = len(prompts) * copies
        first_seed = _integer("seed", seed, 0, 2**64 - count)
        if first_seed is None:
            first_seed = int.from_bytes(os.urandom(4), "little")
        starts = self._start_latents(latents, count)
        shape = None if starts is None else starts.shape
        template = self._scheduled(num_inference_steps, guidance_scale)
        template = replace(
            template,
            negative_prompt=_text("negative_prompt", negative_prompt),
            width=self._side("width", width, None if shape is None else shape[3]),
            height=self._side("height", height, None if shape is None else shape[2]),
        )
        if negative_prompt and template.guidance_scale <= 1:
            logger.warning("the negative prompt has no effect without guidance; use a guidance scale above 1")
        for text in prompts:
            self._warn_if_truncated(model, _text("prompt", text))
        requests = [
            replace(
                template,
                prompt=prompts[n // copies],
                seed=first_seed + n,
                latents=None if starts is None else starts[n % len(starts)][np.newaxis],
            )
            for n in range(count)
        ]
        as_list = count > 1 or not isinstance(prompt, str)
        return self._events(model, requests, output_type, as_list)

    def _events(
        self, model: _core.Model, requests: Sequence[_Request], output_type: OutputType, as_list: bool
    ) -> Generator[Event, None, None]:
        images: list[Any] = []
        count = len(requests)
        with self._exclusively():
            self.last_seed = requests[0].seed
            for index, request in enumerate(requests):
                for event, result in self._steps(model, request, output_type):
                    last = result is not None and index + 1 == count
                    if result is not None:
                        images.append(result)
                    yield replace(
                        event,
                        fraction=(index + event.fraction) / count,
                        index=index,
                        count=count,
                        image=(images if as_list else images[0]) if last else None,
                    )

    def _steps(self, model: _core.Model, request: _Request, output_type: OutputType) -> Iterator[tuple[Event, Any]]:
        """The events of one picture, the last one with the picture."""
        self._raise_if_cancelled()
        with interruptible():
            job = _core.Job(
                model,
                request.prompt,
                negative_prompt=request.negative_prompt,
                width=request.width,
                height=request.height,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                seed=request.seed,
                latents=request.latents,
                schedule=request.schedule,
                init_noise_sigma=request.init_noise_sigma,
                latent_only=output_type == "latent",
            )
        with interruptible(), closing(job):
            stage = ""
            while stage != "done":
                self._raise_if_cancelled()
                number, step, total, fraction = job.advance()
                stage = STAGES[number]
                yield (
                    Event(stage, step, total, fraction),
                    self._result(job, request, output_type) if stage == "done" else None,
                )

    def _result(self, job: _core.Job, request: _Request, output_type: OutputType) -> Any:
        if output_type == "latent":
            return job.latents()
        pixels = job.pixels()
        if output_type == "np":
            return pixels.astype(np.float32) / np.float32(255)
        from PIL import Image

        image = Image.fromarray(pixels)
        image.info.update(self._info(request))
        return image

    def _info(self, request: _Request) -> dict[str, str]:
        from mdrt import __version__, png

        parameters = {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "num_inference_steps": request.num_inference_steps,
            "scheduler": request.scheduler,
            "guidance_scale": request.guidance_scale,
            "width": request.width,
            "height": request.height,
            "seed": request.seed,
            "noise": "latents" if request.latents is not None else self.config["noise"],
            "model": os.path.basename(self.path),
            "version": __version__,
        }
        return png.info(parameters)

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Holds the pipeline for one call; a second caller waits."""
        me = (os.getpid(), threading.get_ident())
        owner = self._owner
        if owner == me:
            raise InvalidArgumentError("this thread is already using the pipeline; finish or close its stream first")
        if owner is not None and owner[0] != me[0]:
            raise InvalidArgumentError("this process was forked while the pipeline was in use; open another one")
        with self._lock:
            self._cancel.clear()
            self._owner = me
            try:
                yield
            finally:
                self._owner = None

    def _raise_if_cancelled(self) -> None:
        if self._cancel.is_set():
            raise Cancelled("the call was cancelled")

    def _open_model(self) -> _core.Model:
        if self._model is None:
            raise InvalidArgumentError("the pipeline is closed; open another one")
        return self._model

    def _scheduled(self, num_inference_steps: int | None, guidance_scale: float | None) -> _Request:
        """A request with its schedule filled in: a stored one, or one made here."""
        steps = _integer("num_inference_steps", num_inference_steps, 1, _MAX_STEPS)
        stored = self.config["schedules"]
        if steps is None:
            steps = stored[0]["num_inference_steps"]
        nearest = min(stored, key=lambda entry: abs(entry["num_inference_steps"] - steps))
        guidance = nearest["guidance_scale"] if guidance_scale is None else guidance_scale
        if isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not math.isfinite(guidance):
            raise InvalidArgumentError(f"guidance_scale must be a finite number, not {guidance_scale!r}")
        request = _Request("", "", steps, nearest["scheduler"], float(guidance), 0, 0, 0)
        if nearest["num_inference_steps"] == steps:
            return request
        from mdrt import schedulers

        schedule = schedulers.make_rows(self.config["scheduler_config"], nearest["scheduler"], steps)
        return replace(request, schedule=schedule.rows[:, :14], init_noise_sigma=schedule.init_noise_sigma)

    def _side(self, name: str, value: int | None, cells: int | None) -> int:
        """Width or height in pixels; `cells`: the same side of given latents."""
        factor = int(self.config["vae_scale_factor"])
        side = _integer(name, value, 1, _MAX_PIXELS_PER_SIDE)
        if side is None:
            return int(self.config[name]) if cells is None else cells * factor
        if side % factor:
            nearest = max(factor, (side + factor // 2) // factor * factor)
            raise InvalidArgumentError(f"{name} {side} is not a multiple of {factor}; the nearest is {nearest}")
        if cells is not None and side != cells * factor:
            raise InvalidArgumentError(
                f"{name} {side} does not fit the latents, which make {cells * factor}; leave it out"
            )
        return side

    def _start_latents(self, latents: Any, count: int) -> NDArray[np.float32] | None:
        if latents is None:
            return None
        array = np.ascontiguousarray(latents, dtype=np.float32)
        channels = int(self.config["latent_channels"])
        if array.ndim != 4 or array.shape[0] not in (1, count) or array.shape[1] != channels or 0 in array.shape:
            raise InvalidArgumentError(
                f"latents must have the shape ({count}, {channels}, height, width), not {tuple(array.shape)}"
            )
        if not np.isfinite(array).all():
            raise InvalidArgumentError("latents hold NaN or infinity")
        return array

    def _warn_if_truncated(self, model: _core.Model, prompt: str) -> None:
        tokens = len(model.tokenize(prompt, padded=False))
        if tokens > self._max_tokens:
            logger.warning(
                "the prompt has %d tokens with begin and end; the model reads %d, the rest is ignored",
                tokens,
                self._max_tokens,
            )


def _integer(name: str, value: Any, low: int, high: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidArgumentError(f"{name} must be an integer, not {value!r}")
    if not low <= value <= high:
        raise InvalidArgumentError(f"{name} must be from {low} to {high}, not {value}")
    return int(value)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name} must be a text, not {type(value).__name__}")
    if "\0" in value:
        raise InvalidArgumentError(f"the {name} holds a NUL character; remove it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidArgumentError(f"the {name} holds half of a surrogate pair; it is not valid Unicode") from None
    return value
