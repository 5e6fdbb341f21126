"""Samplers as tables of numbers: one row per model call, which libmdrt applies without knowing the sampler.

A row holds, in float64, `t p q clip a b e c1 c2 c3 d keep m n`:
`y = p*x + q*out`, clamped to +-clip unless clip is 0; `x' = a*x + b*y + e*out + c1*y1 + c2*y2 + c3*y3 + d*noise`,
where y1..y3 are the last y whose row had keep = 1; the known latent at the new level is `m*latent + n*noise`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import InvalidArgumentError, UnsupportedError

COLUMNS = ("t", "p", "q", "clip", "a", "b", "e", "c1", "c2", "c3", "d", "keep", "m", "n")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")
TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")

_MAX_TRAIN_TIMESTEPS = 1_000_000


class Schedule(NamedTuple):
    """What a picture needs of a sampler: `rows`, float64 (model calls, 14), and the factor of the start noise."""

    rows: NDArray[np.float64]
    init_noise_sigma: float


@dataclass(frozen=True)
class SchedulerConfig:
    """The keys of diffusers' `scheduler_config.json` that determine rows, with DDIMScheduler's defaults."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: tuple[float, ...] | None = None
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    prediction_type: str = "epsilon"
    thresholding: bool = False
    timestep_spacing: str = "leading"
    rescale_betas_zero_snr: bool = False

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any]) -> SchedulerConfig:
        """Reads a configuration; keys of other samplers are ignored, as diffusers does.

        Raises:
            InvalidArgumentError: a value has the wrong type or is out of range; the text names the key.
            UnsupportedError: the configuration asks for thresholding, or for epsilon-prediction with zero terminal SNR.
        """
        read = _Reader(config)
        result = cls(
            num_train_timesteps=read.integer("num_train_timesteps", cls.num_train_timesteps, 1, _MAX_TRAIN_TIMESTEPS),
            beta_start=read.number("beta_start", cls.beta_start, 0, 1),
            beta_end=read.number("beta_end", cls.beta_end, 0, 1),
            beta_schedule=read.word("beta_schedule", cls.beta_schedule, BETA_SCHEDULES),
            trained_betas=read.numbers("trained_betas"),
            clip_sample=read.boolean("clip_sample", cls.clip_sample),
            clip_sample_range=read.number("clip_sample_range", cls.clip_sample_range, 0, math.inf),
            set_alpha_to_one=read.boolean("set_alpha_to_one", cls.set_alpha_to_one),
            steps_offset=read.integer("steps_offset", cls.steps_offset, 0, _MAX_TRAIN_TIMESTEPS),
            prediction_type=read.word("prediction_type", cls.prediction_type, PREDICTION_TYPES),
            thresholding=read.boolean("thresholding", cls.thresholding),
            timestep_spacing=read.word("timestep_spacing", cls.timestep_spacing, TIMESTEP_SPACINGS),
            rescale_betas_zero_snr=read.boolean("rescale_betas_zero_snr", cls.rescale_betas_zero_snr),
        )
        if result.thresholding:
            raise UnsupportedError(
                "thresholding is true, but a linear row cannot express it and latents do not need it; set it to false"
            )
        if result.clip_sample and result.clip_sample_range == 0:
            raise InvalidArgumentError("clip_sample_range is 0, which leaves nothing; set clip_sample to false")
        if result.trained_betas is not None and len(result.trained_betas) != result.num_train_timesteps:
            raise InvalidArgumentError(
                f"trained_betas has {len(result.trained_betas)} numbers, "
                f"but num_train_timesteps is {result.num_train_timesteps}"
            )
        return result


class Scheduler(ABC):
    """Makes the rows of one sampler.

    `alphas_cumprod`: float32 (num_train_timesteps,), the signal's share of the variance at each timestep.
    """

    name: ClassVar[str]
    init_noise_sigma: ClassVar[float] = 1.0

    def __init__(self, config: SchedulerConfig) -> None:
        self.config = config
        self.alphas_cumprod = _alphas_cumprod(config)
        if config.prediction_type == "epsilon" and self.alphas_cumprod[-1] == 0:
            raise UnsupportedError(
                "epsilon-prediction with zero terminal SNR: the last timestep holds no signal, so the noise says "
                "nothing about the picture; use v_prediction or set rescale_betas_zero_snr to false"
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Scheduler:
        """From the keys of diffusers' `scheduler_config.json`; errors as `SchedulerConfig.from_mapping`."""
        return cls(SchedulerConfig.from_mapping(config))

    @abstractmethod
    def timesteps(self, num_inference_steps: int) -> NDArray[np.int64]:
        """The timesteps of the model calls, int64 (num_inference_steps,), falling.

        Raises:
            InvalidArgumentError: the count is not from 1 to num_train_timesteps, or steps_offset leads beyond them.
        """

    @abstractmethod
    def rows(self, num_inference_steps: int) -> NDArray[np.float64]:
        """The rows, float64 (model calls, 14); errors as `timesteps`."""

    def _spaced(self, num_inference_steps: int, spacing: str) -> NDArray[np.int64]:
        train, count = self.config.num_train_timesteps, num_inference_steps
        if isinstance(count, bool) or not isinstance(count, (int, np.integer)) or not 1 <= count <= train:
            raise InvalidArgumentError(f"num_inference_steps is {count!r}, but must be from 1 to {train}")
        timesteps: NDArray[Any]
        if spacing == "linspace":
            timesteps = np.linspace(0, train - 1, count).round()[::-1]
        elif spacing == "leading":
            timesteps = (np.arange(count) * (train // count))[::-1] + self.config.steps_offset
        else:
            # The float step may leave one number too many, just above 0.
            timesteps = np.round(np.arange(train, 0, -train / count))[:count] - 1
        if timesteps[0] >= train:
            raise InvalidArgumentError(
                f"timestep {int(timesteps[0])} of {count} steps lies beyond the training's last, {train - 1}; "
                f"use fewer steps or another timestep_spacing (steps_offset is {self.config.steps_offset})"
            )
        return timesteps.astype(np.int64)

    def _signal(self, timestep: int) -> tuple[float, float]:
        """(alpha, beta) of a timestep: the shares of signal and noise in the variance."""
        alpha = float(self.alphas_cumprod[timestep])
        return alpha, 1 - alpha

    def _predicted_sample(self, alpha: float, beta: float) -> dict[str, float]:
        """The columns that make y the model's idea of the clean latent."""
        clip = self.config.clip_sample_range if self.config.clip_sample else 0.0
        if self.config.prediction_type == "epsilon":
            return {"p": 1 / math.sqrt(alpha), "q": -math.sqrt(beta) / math.sqrt(alpha), "clip": clip}
        if self.config.prediction_type == "v_prediction":
            return {"p": math.sqrt(alpha), "q": -math.sqrt(beta), "clip": clip}
        return {"p": 0.0, "q": 1.0, "clip": clip}


class DDIMScheduler(Scheduler):
    """Denoising diffusion implicit models, arXiv 2010.02502, formulas 12 and 16, with diffusers' conventions.

    `eta`, 0 to 1: share of new noise in a step; 0 is deterministic, 1 is DDPM.
    """

    name = "ddim"

    def __init__(self, config: SchedulerConfig, eta: float = 0.0) -> None:
        super().__init__(config)
        if not 0 <= eta <= 1:
            raise InvalidArgumentError(f"eta is {eta}, but must be from 0 to 1")
        self.eta = eta

    def timesteps(self, num_inference_steps: int) -> NDArray[np.int64]:
        return self._spaced(num_inference_steps, self.config.timestep_spacing)

    def rows(self, num_inference_steps: int) -> NDArray[np.float64]:
        timesteps = self.timesteps(num_inference_steps)
        stride = self.config.num_train_timesteps // num_inference_steps
        return np.stack([self._row(int(t), int(t) - stride) for t in timesteps])

    def _row(self, timestep: int, previous: int) -> NDArray[np.float64]:
        alpha, beta = self._signal(timestep)
        if previous >= 0:
            alpha_next = self._signal(previous)[0]
        else:
            alpha_next = 1.0 if self.config.set_alpha_to_one else self._signal(0)[0]
        beta_next = 1 - alpha_next
        deviation = self.eta * math.sqrt(max(0.0, beta_next / beta * (1 - alpha / alpha_next)))
        direction = math.sqrt(max(0.0, beta_next - deviation**2))
        columns = self._predicted_sample(alpha, beta)
        # What clipping does to y must not touch the predicted noise: hence it comes from x and out, in columns a and e.
        if self.config.prediction_type == "epsilon":
            a, e = 0.0, direction
        elif self.config.prediction_type == "v_prediction":
            a, e = direction * math.sqrt(beta), direction * math.sqrt(alpha)
        else:
            a, e = direction / math.sqrt(beta), -direction * math.sqrt(alpha) / math.sqrt(beta)
        return _row(
            t=timestep,
            a=a,
            b=math.sqrt(alpha_next),
            e=e,
            d=deviation,
            m=math.sqrt(alpha_next),
            n=math.sqrt(beta_next),
            **columns,
        )


class UFOGenScheduler(Scheduler):
    """One-step and few-step sampling of a diffusion-GAN, UFOGen, arXiv 2311.09257.

    Every call predicts the clean latent, which is noised again to the next level; the last call returns it. Timesteps
    are trailing whatever the configuration says.
    """

    name = "ufogen"

    def timesteps(self, num_inference_steps: int) -> NDArray[np.int64]:
        return self._spaced(num_inference_steps, "trailing")

    def rows(self, num_inference_steps: int) -> NDArray[np.float64]:
        timesteps = [int(t) for t in self.timesteps(num_inference_steps)]
        levels = [self._signal(t) for t in timesteps]
        following = [*levels[1:], (1.0, 0.0)]
        return np.stack(
            [
                _row(
                    t=timestep,
                    b=math.sqrt(alpha_next),
                    d=math.sqrt(beta_next),
                    m=math.sqrt(alpha_next),
                    n=math.sqrt(beta_next),
                    **self._predicted_sample(*level),
                )
                for timestep, level, (alpha_next, beta_next) in zip(timesteps, levels, following, strict=True)
            ]
        )


SCHEDULERS: dict[str, type[Scheduler]] = {cls.name: cls for cls in (DDIMScheduler, UFOGenScheduler)}


def scheduler_name(config: Mapping[str, Any]) -> str:
    """The short name ("ddim", ...) of a configuration's `_class_name`.

    Raises:
        UnsupportedError: it names a sampler that is not here, or none.
    """
    class_name = config.get("_class_name")
    for name, cls in SCHEDULERS.items():
        if cls.__name__ == class_name:
            return name
    known = ", ".join(cls.__name__ for cls in SCHEDULERS.values())
    raise UnsupportedError(f"the scheduler's _class_name is {class_name!r}; supported are {known}: choose one of them")


def make_rows(config: Mapping[str, Any], scheduler: str, num_inference_steps: int) -> Schedule:
    """The schedule of a sampler ("ddim", "ufogen") for a configuration with diffusers' keys and a number of steps.

    Raises:
        InvalidArgumentError: the number of steps or a value of the configuration is out of range.
        UnsupportedError: the sampler is not here, or the configuration asks for what it cannot do.
    """
    if scheduler not in SCHEDULERS:
        raise UnsupportedError(f"there is no scheduler {scheduler!r}; choose one of {', '.join(SCHEDULERS)}")
    maker = SCHEDULERS[scheduler].from_config(config)
    return Schedule(maker.rows(num_inference_steps), maker.init_noise_sigma)


def _row(**columns: float) -> NDArray[np.float64]:
    return np.array([columns.get(column, 0.0) for column in COLUMNS], dtype=np.float64)


def _alphas_cumprod(config: SchedulerConfig) -> NDArray[np.float32]:
    """float32 (num_train_timesteps,): the bits that diffusers gets, by the same operations in the same order.

    Rescaling to zero terminal SNR may differ in last places, because PyTorch's square root is not correctly rounded on
    every machine; this one is.
    """
    betas = _betas(config)
    if not (np.all(betas > 0) and np.all(betas <= 1)):
        raise InvalidArgumentError("the betas must lie above 0 and up to 1; check beta_start, beta_end, trained_betas")
    if config.rescale_betas_zero_snr:
        betas = _rescale_zero_terminal_snr(betas)
    return _cumulative_product(np.float32(1) - betas)


def _betas(config: SchedulerConfig) -> NDArray[np.float32]:
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        return np.array(config.trained_betas, dtype=np.float32)
    if config.beta_schedule == "linear":
        return _linspace(config.beta_start, config.beta_end, count)
    if config.beta_schedule == "scaled_linear":
        roots = _linspace(config.beta_start**0.5, config.beta_end**0.5, count)
        return roots * roots

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array(
        [min(1 - alpha_bar((i + 1) / count) / alpha_bar(i / count), 0.999) for i in range(count)], dtype=np.float32
    )


def _linspace(start: float, end: float, count: int) -> NDArray[np.float32]:
    """As PyTorch does it in float32: from both ends towards the middle, each number rounded once."""
    first, last = np.float32(start), np.float32(end)
    if count == 1:
        return np.array([first])
    step = np.float64((last - first) / np.float32(count - 1))
    index = np.arange(count)
    upwards, downwards = np.float64(first) + step * index, np.float64(last) - step * (count - 1 - index)
    values: NDArray[np.float64] = np.where(index < count // 2, upwards, downwards)
    return values.astype(np.float32)


def _cumulative_product(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """PyTorch's accumulator for float32 on a CPU is float64."""
    return np.cumprod(values.astype(np.float64)).astype(np.float32)


def _rescale_zero_terminal_snr(betas: NDArray[np.float32]) -> NDArray[np.float32]:
    """Betas whose last timestep holds no signal: arXiv 2305.08891, algorithm 1."""
    roots = np.sqrt(_cumulative_product(np.float32(1) - betas))
    first, last = roots[0], roots[-1]
    if len(roots) < 2 or np.any(roots[:-1] <= last):
        raise InvalidArgumentError(
            "rescale_betas_zero_snr needs signal in every timestep but the last; use more timesteps or smaller betas"
        )
    roots = (roots - last) * (first / (first - last))
    alphas_bar = roots * roots
    rescaled: NDArray[np.float32] = np.float32(1) - np.concatenate([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])
    return rescaled


class _Reader:
    """Takes values of known type and range out of a configuration; null means the default."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def _get(self, key: str, default: Any) -> Any:
        value = self._config.get(key)
        return default if value is None else value

    def _refuse(self, key: str, value: object, wanted: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"the scheduler's {key} is {value!r}, but must be {wanted}")

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        value = self._get(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or value != value // 1 or not low <= value <= high:
            raise self._refuse(key, value, f"an integer from {low} to {high}")
        return int(value)

    def number(self, key: str, default: float, low: float, high: float) -> float:
        value = self._get(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not low <= value <= high or math.isinf(value):
            raise self._refuse(key, value, f"a number from {low} to {high}")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...] | None:
        value = self._get(key, None)
        if value is None:
            return None
        if isinstance(value, (str, bytes)) or not isinstance(value, (Sequence, np.ndarray)):
            raise self._refuse(key, value, "a list of numbers")
        try:
            return tuple(float(item) for item in value)
        except (TypeError, ValueError):
            raise self._refuse(key, value, "a list of numbers") from None

    def boolean(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._refuse(key, value, "true or false")
        return value

    def word(self, key: str, default: str, words: Sequence[str]) -> str:
        value = self._get(key, default)
        if value not in words:
            raise self._refuse(key, value, f"one of {', '.join(words)}")
        return str(value)
