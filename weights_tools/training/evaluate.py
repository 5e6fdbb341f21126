"""The stage `evaluate`: identity, fidelity and edges of models over the same prompts and start noise.

Every full caption has its true picture. Identity: each place shows the named emoji, of all, and the border the colour.
Fidelity: PSNR in dB. Edges: their steepness, of the true. Bare keywords: the share of pictures that show one of their
emoji, and how many different ones 16 seeds show. None of these stands alone: blur keeps identity, noise keeps edges.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mdrt.errors import ConversionError
from mdrt.files import replacing
from weights_tools.training import layouts
from weights_tools.training.drawing import BundleDrawer, Drawer, TorchDrawer
from weights_tools.training.emoji import EmojiSet, read_training_emoji
from weights_tools.training.figures import edges, psnr
from weights_tools.training.identity import Gallery, share_of_members
from weights_tools.training.latents import read_concepts
from weights_tools.training.questions import Questions, ask, sheet, start_noise
from weights_tools.training.stage import Context

BUILT_IN = "built-in"
_SHEET_COLUMNS = 8


@dataclass(frozen=True)
class EvaluateConfig:
    """Which models are compared, over what. Paths begin at the run's folder."""

    pipelines: tuple[str, ...] = ()  # pipeline directories, drawn in PyTorch
    formats: tuple[str, ...] = ()  # bundles to make of the first pipeline and to draw in mdrt: fp32, fp16, int8
    bundles: tuple[str, ...] = ()  # further bundles; "built-in" is the model inside the package
    num_inference_steps: tuple[int, ...] = (1, 8)
    guidance_scale: tuple[float, ...] = (1.0, 1.0)  # one for each number of steps
    concepts: tuple[str, ...] = ()  # names of the emoji to ask for; none: those that `latents` taught
    compositions: int = 200  # of each kind
    keywords: int = 40
    seeds: int = 16  # of each bare keyword
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.guidance_scale) != len(self.num_inference_steps) or not self.num_inference_steps:
            raise ConversionError("guidance_scale needs one number for each of num_inference_steps")
        if not self.pipelines and not self.bundles:
            raise ConversionError("pipelines or bundles must name what to evaluate")
        if self.formats and not self.pipelines:
            raise ConversionError("formats are made of the first of pipelines, of which there is none")


@dataclass(frozen=True)
class Figures:
    """Of one model and number of steps; shares from 0 to 1, medians over emoji alone on white."""

    identity: float
    fidelity: float
    edges: float
    colours: float | None
    pairs: float | None
    keyword_members: float | None
    keyword_variety: float | None
    seconds: float


def run(context: Context) -> None:
    """Leaves figures.json, figures.md and, for each model and number of steps, a picture of the 32 prompts."""
    config = context.config(EvaluateConfig)
    emoji = read_training_emoji(context.folder)
    questions = ask(emoji, config.concepts or read_concepts(context.folder), config.compositions, config.keywords)
    galleries: dict[int, Gallery] = {}
    rows: dict[str, dict[int, Figures]] = {}
    for name, drawer in _drawers(context, config):
        size = int(drawer.draw(["blank"], np.zeros((1, *drawer.shape), np.float32), 1, 1.0).shape[1])
        gallery = galleries.setdefault(size, Gallery(emoji, size))
        for steps, guidance in zip(config.num_inference_steps, config.guidance_scale, strict=True):
            drawing = _Drawing(drawer, steps, guidance, config.seed)
            figures = examine(drawing, questions, emoji, gallery, size, config.seeds)
            rows.setdefault(name, {})[steps] = figures
            context.say(f"{name}, {steps}: {_words(figures)}")
            _write_sheet(context.output / f"{name.replace('/', '-')}-{steps}.png", drawing, questions, emoji, size)
            _write(context.output, config, rows)


@dataclass(frozen=True)
class _Drawing:
    """A model at one number of steps, with the noise that follows from prompts."""

    drawer: Drawer
    num_inference_steps: int
    guidance_scale: float
    seed: int

    def __call__(self, prompts: list[str], seeds: int = 1) -> NDArray[np.uint8]:
        """`seeds` pictures of each prompt, in a row."""
        noise = [start_noise(prompt, seeds, self.drawer.shape, self.seed) for prompt in prompts]
        repeated = [prompt for prompt in prompts for _ in range(seeds)]
        return self.drawer.draw(repeated, np.concatenate(noise), self.num_inference_steps, self.guidance_scale)


def examine(
    drawing: _Drawing, questions: Questions, emoji: EmojiSet, gallery: Gallery, size: int, seeds: int
) -> Figures:
    """Draws everything that is asked, and measures it."""
    begin = time.monotonic()
    right: dict[str, float | None] = dict.fromkeys(questions.scenes)
    fidelity = sharpness = 0.0
    for kind, scenes in questions.scenes.items():
        if not scenes:
            continue
        pictures = drawing(questions.prompts[kind])
        right[kind] = float(gallery.is_right(pictures, scenes).mean())
        if kind == "single":
            true = np.stack([layouts.draw(emoji, scene, size) for scene in scenes])
            fidelity, sharpness = float(np.median(psnr(pictures, true))), float(np.median(edges(pictures, true)))
    members, variety = _examine_keywords(drawing, questions, gallery, seeds)
    return Figures(
        identity=right["single"] or 0.0,
        fidelity=fidelity,
        edges=sharpness,
        colours=right["colours"],
        pairs=right["pairs"],
        keyword_members=members,
        keyword_variety=variety,
        seconds=round(time.monotonic() - begin, 1),
    )


def _examine_keywords(
    drawing: _Drawing, questions: Questions, gallery: Gallery, seeds: int
) -> tuple[float | None, float | None]:
    """The share of pictures that show a member, and the median number of different ones."""
    if not questions.keywords:
        return None, None
    shown = gallery.nearest(drawing(list(questions.keyword_prompts.values()), seeds), "single").reshape(-1, seeds)
    found = [share_of_members(row, members) for row, members in zip(shown, questions.keywords.values(), strict=True)]
    shares, counts = zip(*found, strict=True)
    return float(np.mean(shares)), float(np.median(counts))


def _drawers(context: Context, config: EvaluateConfig) -> Iterator[tuple[str, Drawer]]:
    """Models by name, opened one after another."""
    for name in config.pipelines:
        yield name, TorchDrawer(context.folder / name, context.device)
    for format in config.formats:
        yield f"mdrt {format}", BundleDrawer(_convert(context, config, format))
    for name in config.bundles:
        yield name, BundleDrawer(None if name == BUILT_IN else context.folder / name)


def _convert(context: Context, config: EvaluateConfig, format: str) -> Path:
    """The bundle of the first pipeline, made anew."""
    from weights_tools.convert import convert

    path = context.output / f"{format}.mdrt"
    convert(
        context.folder / config.pipelines[0],
        path,
        format,
        steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
    )
    return path


def _write(folder: Path, config: EvaluateConfig, rows: Mapping[str, Mapping[int, Figures]]) -> None:
    figures = {name: {str(steps): asdict(row) for steps, row in table.items()} for name, table in rows.items()}
    document = json.dumps({"config": asdict(config), "figures": figures}, indent=1)
    for name, text in (("figures.json", document), ("figures.md", _table(config, rows))):
        with replacing(folder / name) as file:
            file.write(f"{text}\n".encode())


def _table(config: EvaluateConfig, rows: Mapping[str, Mapping[int, Figures]]) -> str:
    head = "| model | steps | guidance | identity | fidelity | edges | colours | pairs | keywords: member | different |"
    lines = [head, "|---" * head.count(" | ") + "|---|"]
    guidance = dict(zip(config.num_inference_steps, config.guidance_scale, strict=True))
    for name, table in rows.items():
        for steps, row in table.items():
            lines.append(f"| {name} | {steps} | {guidance[steps]:g} | {' | '.join(_cells(row).values())} |")
    return "\n".join(lines)


def _cells(row: Figures) -> dict[str, str]:
    def percent(share: float | None) -> str:
        return "-" if share is None else f"{100 * share:.1f} %"

    return {
        "identity": percent(row.identity),
        "fidelity": f"{row.fidelity:.2f} dB",
        "edges": f"{row.edges:.3f}",
        "colours": percent(row.colours),
        "pairs": percent(row.pairs),
        "keywords": percent(row.keyword_members),
        "different": "-" if row.keyword_variety is None else f"{row.keyword_variety:g}",
    }


def _words(row: Figures) -> str:
    return ", ".join(f"{name} {cell}" for name, cell in _cells(row).items()) + f" ({row.seconds:.0f} s)"


def _write_sheet(path: Path, drawing: _Drawing, questions: Questions, emoji: EmojiSet, size: int) -> None:
    """The 32 prompts, below each picture the true one."""
    prompts, scenes = sheet(questions)
    drawn = drawing(prompts)
    rows = -(-len(prompts) // _SHEET_COLUMNS)
    page = Image.new("RGB", (_SHEET_COLUMNS * size, 2 * rows * size), layouts.WHITE)
    for index, (picture, scene) in enumerate(zip(drawn, scenes, strict=True)):
        row, column = divmod(index, _SHEET_COLUMNS)
        page.paste(Image.fromarray(picture), (column * size, 2 * row * size))
        page.paste(Image.fromarray(layouts.draw(emoji, scene, size)), (column * size, (2 * row + 1) * size))
    with replacing(path) as file:
        page.save(file, format="PNG")
