"""What all stages share: configurations, the training loop with its log, averages, exact resumption, light checkpoints.

A run has one folder. Each stage reads what earlier ones left there and writes a subfolder of its own name:
log.csv and log.png, `full.pt` to go on from exactly, and `light`, a pipeline directory in 16 bits.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mdrt.errors import ConversionError, FileError, InvalidArgumentError, NumericError
from mdrt.files import replacing
from weights_tools.checkpoint import make_config

Config = TypeVar("Config")


@dataclass(frozen=True)
class Context:
    """How a stage was called: its name, the JSON of its configuration, the folder of the run, limits and device."""

    stage: str
    settings: Mapping[str, Any]
    folder: Path
    minutes: float | None = None
    device: str = "cpu"
    resume: bool = False
    say: Callable[[str], None] = print

    @property
    def output(self) -> Path:
        """The stage's own subfolder, made when asked for."""
        path = self.folder / self.stage
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def full_checkpoint(self) -> Path:
        """Where the stage keeps what it goes on from."""
        return self.output / "full.pt"

    @property
    def goes_on(self) -> bool:
        """Whether the stage was begun before and goes on now, so that nothing needs to be initialised."""
        return self.resume and self.full_checkpoint.exists()

    def config(self, cls: type[Config]) -> Config:
        """The settings as a `cls`, a dataclass whose fields name the keys.

        Raises:
            InvalidArgumentError: an unknown or missing key, or a value of a wrong type.
        """
        fields = {entry.name: entry for entry in dataclasses.fields(cls)}  # type: ignore[arg-type]
        for key in self.settings:
            if key not in fields:
                raise InvalidArgumentError(f"the stage {self.stage} has no setting {key!r}; it has {', '.join(fields)}")
        for name, entry in fields.items():
            has_default = not (entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING)
            if name not in self.settings and not has_default:
                raise InvalidArgumentError(f"the stage {self.stage} needs the setting {name!r}")
        try:
            return make_config(cls, self.settings, f"the configuration of {self.stage}")
        except ConversionError as error:
            raise InvalidArgumentError(str(error)) from error


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to learn; everything is counted in samples, so that it is the same on every machine.

    The learning rate rises over `warm_up_samples`, stays for the share `flat` of all samples, and falls to
    `final_learning_rate` times its height along a line or half a cosine.
    """

    samples: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    warm_up_samples: int = 0
    flat: float = 0.0
    decay: str = "cosine"
    final_learning_rate: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    report_samples: int = 2000
    checkpoint_minutes: float = 5.0

    def __post_init__(self) -> None:
        if self.decay not in {"cosine", "linear"}:
            raise ConversionError(f"decay is {self.decay!r}; it must be cosine or linear")
        if self.batch_size < 1 or self.samples < self.batch_size:
            raise ConversionError("batch_size must be at least 1 and samples at least one batch")
        if len(self.betas) != 2:
            raise ConversionError(f"betas are {self.betas}; they must be two numbers")

    @property
    def steps(self) -> int:
        """Updates in all."""
        return self.samples // self.batch_size

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of update `step`, counted from 0."""
        if step * self.batch_size < self.warm_up_samples:
            return self.learning_rate * (step + 1) * self.batch_size / (self.warm_up_samples + self.batch_size)
        fall = max(0.0, (step / self.steps - self.flat) / (1 - self.flat)) if self.flat < 1 else 0.0
        share = 0.5 * (1 + math.cos(math.pi * fall)) if self.decay == "cosine" else 1 - fall
        return self.learning_rate * (self.final_learning_rate + (1 - self.final_learning_rate) * share)


@dataclass
class State:
    """All that training changes: networks and optimizers by name, the networks' averages, updates made, seconds spent.

    `averages` are copies of `modules`, moved towards them after each update.
    """

    modules: dict[str, Any]
    optimizers: dict[str, Any]
    averages: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0

    def add_averages(self, *names: str) -> None:
        """Starts the averages of the named networks at their present weights."""
        for name in names:
            self.averages[name] = copy.deepcopy(self.modules[name]).requires_grad_(False).eval()

    def average(self, decay: float) -> None:
        """Moves the averages; young ones follow faster, so that the start is soon forgotten."""
        import torch

        weight = 1 - min(decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for name, average in self.averages.items():
                torch._foreach_lerp_(list(average.parameters()), list(self.modules[name].parameters()), weight)

    def save(self, path: Path) -> None:
        """Writes the full checkpoint."""
        import torch

        parts = {key: {name: part.state_dict() for name, part in getattr(self, key).items()} for key in _PARTS}
        with replacing(path) as file:
            torch.save({**parts, "step": self.step, "seconds": self.seconds}, file)

    def load(self, path: Path) -> None:
        """Goes on from a full checkpoint of the same networks.

        Raises:
            FileError: it is missing, damaged or of other networks.
        """
        import torch

        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            for key in _PARTS:
                for name, part in getattr(self, key).items():
                    part.load_state_dict(saved[key][name])
            self.step, self.seconds = saved["step"], saved["seconds"]
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise FileError(f"{path} is no checkpoint of this stage and configuration: {error}") from error


_PARTS = ("modules", "optimizers", "averages")
Figures = Mapping[str, Any]  # numbers, or tensors of one number, which nobody waits for until a row is written
Update = Callable[[int, np.random.Generator], Figures]


def adamw(parameters: Any, config: LoopConfig) -> Any:
    """AdamW as `config` says, in one fused kernel."""
    import torch

    betas = (config.betas[0], config.betas[1])
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=betas, weight_decay=config.weight_decay, fused=True
    )


def train(
    context: Context,
    config: LoopConfig,
    state: State,
    update: Update,
    measure: Callable[[], Mapping[str, float]] = dict,
    on_checkpoint: Callable[[], None] = lambda: None,
) -> bool:
    """Calls `update(step, random)` until all samples are seen, the minutes are over or the process is asked to end.

    Everything random of a step follows from the seed and the number of the step: NumPy's generator is handed over,
    PyTorch's global one is set. So a run that was stopped and resumed equals an unbroken one. Returns whether all
    samples were seen. `measure` gives further figures for each row of the log; `on_checkpoint` is called after each
    full checkpoint.

    Raises:
        InvalidArgumentError: the folder holds a started training and `resume` was not asked for.
        NumericError: a figure is not finite any more.
    """
    import torch

    from weights_tools.training import workers

    if context.device != "cpu":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")  # tf32, on top of what `autocast` makes bf16
    full = context.full_checkpoint
    if context.goes_on:
        state.load(full)
    elif full.exists():
        raise InvalidArgumentError(f"{full} is a started training; go on with --resume or name another folder")
    log = Log(context.output / "log.csv", state.step)
    begin = saved = time.monotonic()
    before = state.seconds
    minutes = math.inf if context.minutes is None else context.minutes
    with _ending(begin + 60 * minutes) as is_ending:
        is_over = False
        while state.step < config.steps and not is_over:
            rate = config.learning_rate_at(state.step)
            for optimizer in state.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("rate_scale", 1.0)
            torch.manual_seed((config.seed * 1_000_003 + state.step) * workers.count() + workers.rank())
            random = np.random.default_rng([config.seed, state.step, workers.rank()])
            figures, is_over = workers.agree(update(state.step, random), is_ending())
            state.step += 1
            state.average(config.ema)
            state.seconds = before + time.monotonic() - begin
            if workers.rank():
                continue
            if log.add(state, config, {"learning_rate": rate, **figures}, measure):
                context.say(log.last)
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                log.check()
                state.save(full)
                on_checkpoint()
                saved = time.monotonic()
    if workers.rank() == 0:
        log.check()
        state.save(full)
        on_checkpoint()
        log.plot()
    return state.step >= config.steps


class Log:
    """log.csv: one row per `report_samples`, the mean of each figure since the row before.

    Rows after `step`, which a resumed run repeats, are dropped.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._rows: list[dict[str, str]] = []
        self._sums: dict[str, Any] = {}
        self._count = 0
        if path.exists() and step:
            with open(path, encoding="utf-8", newline="") as file:
                self._rows = [row for row in csv.DictReader(file) if int(row["step"]) <= step]

    @property
    def last(self) -> str:
        """The latest row in words."""
        return "  ".join(f"{key} {value}" for key, value in self._rows[-1].items())

    def add(
        self,
        state: State,
        config: LoopConfig,
        figures: Figures,
        measure: Callable[[], Mapping[str, float]],
    ) -> bool:
        """Counts the figures of one update; True when that completed a row, which is then in the file."""
        for key, value in figures.items():
            self._sums[key] = self._sums.get(key, 0.0) + value
        self._count += 1
        samples = state.step * config.batch_size
        if samples // config.report_samples == (samples - config.batch_size) // config.report_samples:
            return False
        self.check()
        means = {key: float(value) / self._count for key, value in self._sums.items()}
        row = {"step": state.step, "samples": samples, "seconds": round(state.seconds), **means, **measure()}
        texts = {key: f"{value:.5g}" if isinstance(value, float) else str(value) for key, value in row.items()}
        self._rows.append(texts)
        self._sums, self._count = {}, 0
        with replacing(self._path) as file:
            file.write(self._text().encode())
        return True

    def check(self) -> None:
        """Raises NumericError if a figure is not finite any more, before what is wrong is saved."""
        for key, value in self._sums.items():
            if not math.isfinite(value):
                raise NumericError(f"the figure {key} is not finite any more; lower learning_rate")

    def plot(self) -> None:
        """Draws log.png, if matplotlib is installed and there is anything to draw."""
        try:
            from matplotlib.figure import Figure
        except ImportError:
            return
        names = [name for name in self._columns() if name not in {"step", "samples", "seconds"}]
        if not names:
            return
        figure = Figure(figsize=(8, 2.2 * len(names)), layout="constrained")
        for name, axes in zip(names, figure.subplots(len(names), squeeze=False)[:, 0], strict=True):
            points = [(int(row["samples"]), float(row[name])) for row in self._rows if row.get(name)]
            axes.plot(*zip(*points, strict=True))
            axes.set_ylabel(name)
        axes.set_xlabel("samples")
        with replacing(self._path.with_suffix(".png")) as file:
            figure.savefig(file, format="png")

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(key for row in self._rows for key in row))

    def _text(self) -> str:
        columns = self._columns()
        lines = [columns, *([row.get(column, "") for column in columns] for row in self._rows)]
        return "".join(",".join(line) + "\n" for line in lines)


@contextlib.contextmanager
def _ending(deadline: float) -> Iterator[Callable[[], bool]]:
    """Turns a time, Ctrl-C and SIGTERM into a question, so that the update at hand ends and is saved."""
    asked: list[int] = []
    old = {number: signal.signal(number, lambda *_: asked.append(1)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked) or time.monotonic() > deadline
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
