"""The stage `latents`: encodes every picture of the training set once, and writes the pool and the final autoencoder.

Of emoji: each alone, on each colour, larger and smaller; pairs by chance, beside and above each other, of two sizes;
counts. Held-out scenes are left out. Of a folder of captioned pictures: those.
"""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mdrt.files import replacing
from weights_tools.training import layouts
from weights_tools.training.captions import bare_keywords, keyword_wordings, wordings
from weights_tools.training.emoji import EmojiSet, read_training_emoji
from weights_tools.training.imagefolder import read_captions, read_pictures
from weights_tools.training.layouts import COLOURS, COUNTS, Scene
from weights_tools.training.light import Part, write_pipeline
from weights_tools.training.pool import FILE_NAME, KINDS, Pool
from weights_tools.training.stage import Context
from weights_tools.training.tokenizer import Tokenizer
from weights_tools.training.vae import to_tensor, vae_json

CONCEPTS = "concepts.txt"
_PROCESS_SCENES = 2000  # fewer are drawn sooner than a process starts
_emoji: EmojiSet  # of a process that draws
_size: int

if TYPE_CHECKING:
    from weights_tools.modules.vae import AutoencoderKL


@dataclass(frozen=True)
class LatentsConfig:
    """How many pairs of each layout, and counts, are drawn by chance; a part of them stands on colours."""

    picture: int = 128
    batch_size: int = 64
    seed: int = 0
    beside: int = 24000
    above: int = 8000
    larger: int = 4000
    counts: int = 4000
    coloured: float = 0.3
    concepts: tuple[str, ...] = ()  # names of the emoji to teach; none: all
    images: str | None = None  # a folder of captioned pictures instead of emoji


class _Rows:
    """The rows of a pool as they are found; a caption belongs to the first picture that claims it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._taken: set[str] = set()
        self.rows: list[tuple[int, int, float, NDArray[np.int32]]] = []  # picture, kind, weight, ids

    def claim(self, picture: int, kind: str, captions: Sequence[str]) -> bool:
        """Adds captions of a picture, the first as often as all others together; False if the first cannot be used."""
        fitting = [text for text in captions if text not in self._taken and self._fits(text)]
        if fitting[:1] != [captions[0]]:
            return False
        self._taken.update(fitting)
        self.add(picture, kind, fitting, 1.0)
        return True

    def add(self, picture: int, kind: str, captions: Sequence[str], weight: float) -> None:
        """Adds captions, whoever else has them, of this weight in all."""
        others = max(1, len(captions) - 1)
        for index, ids in enumerate(self._tokenizer.encode(captions)):
            share = weight / len(captions) if len(captions) < 2 else weight / (2 * (others if index else 1))
            self.rows.append((picture, KINDS.index(kind), share, ids))

    def pool(self, latents: NDArray[np.float16]) -> Pool:
        """The pool of these rows."""
        pictures, kinds, weights, ids = zip(*self.rows, strict=True)
        dtypes = {"picture": np.int32, "kind": np.uint8, "ids": np.uint16, "weight": np.float32}
        columns = zip(dtypes.items(), (pictures, kinds, ids, weights), strict=True)
        return Pool(latents, **{name: np.array(column, dtype) for (name, dtype), column in columns})

    def _fits(self, caption: str) -> bool:
        return self._tokenizer.count(caption) <= self._tokenizer.length


def run(context: Context) -> None:
    """Leaves `latents.npz`, `concepts.txt` and, in `light`, the autoencoder whose scaling_factor makes them so."""
    from weights_tools.modules.vae import load_autoencoder

    config = context.config(LatentsConfig)
    rows = _Rows(Tokenizer(context.folder / "tokenizer"))
    if config.images:
        folder = context.folder / config.images
        for index, caption in enumerate(read_captions(folder)):
            rows.add(index, "image", [caption], 1.0)
        pictures = read_pictures(folder, config.picture)
    else:
        emoji = read_training_emoji(context.folder, config.concepts)
        with replacing(context.output / CONCEPTS) as file:
            file.write("".join(f"{name}\n" for name in emoji.names).encode())
        scenes = list(_claimed(emoji, config, rows))
        pictures = _drawn(emoji, scenes, config.picture)
    model = load_autoencoder(context.folder / "vae" / "light").to(context.device)
    latents = np.concatenate(list(_encoded(model, pictures, config.batch_size, context)))
    scaling_factor = 1 / float(latents.std())
    latents *= scaling_factor
    rows.pool(latents.astype(np.float16)).save(context.output / FILE_NAME)
    document = vae_json(model.config, config.picture, scaling_factor)
    write_pipeline(context.output / "light", {"vae": Part(document, model.state_dict())})
    context.say(f"{len(latents)} pictures, {len(rows.rows)} captions, scaling_factor {scaling_factor:.4f}")


def read_concepts(folder: Path) -> tuple[str, ...]:
    """The names of the emoji that a run teaches, as the stage left them; none if it left no such file."""
    path = folder / "latents" / CONCEPTS
    return tuple(path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()


def training_scenes(emoji: EmojiSet, config: LatentsConfig) -> Iterator[tuple[str, Scene]]:
    """Kinds and scenes in a fixed order, none held out, some perhaps twice."""
    everyone = range(len(emoji))
    random = np.random.default_rng(config.seed)

    def colour() -> str | None:
        return str(random.choice(list(COLOURS))) if random.random() < config.coloured else None

    def some(count: int) -> tuple[int, ...]:
        return tuple(random.choice(len(emoji), size=count, replace=False).tolist())

    candidates = [("single", layouts.single(index)) for index in everyone]
    candidates += [("colour", layouts.single(index, name)) for index in everyone for name in COLOURS]
    candidates += [("rest", Scene(size, (index,), colour())) for size in ("large", "small") for index in everyone]
    pairs = {"beside": config.beside, "above": config.above, "larger": config.larger} if len(emoji) > 1 else {}
    for layout, count in pairs.items():
        kind = layout if layout in KINDS else "rest"
        candidates += [(kind, Scene(layout, some(2), colour())) for _ in range(count)]
    for index in range(config.counts):
        candidates.append(("rest", layouts.counted(COUNTS[index % len(COUNTS)], some(1)[0], colour())))
    return ((kind, scene) for kind, scene in candidates if not layouts.is_held_out(emoji, scene))


def _claimed(emoji: EmojiSet, config: LatentsConfig, rows: _Rows) -> Iterator[Scene]:
    """The scenes that could claim their captions, in the order of pictures; then bare keywords claim emoji."""
    count = 0
    for kind, scene in training_scenes(emoji, config):
        if rows.claim(count, kind, wordings(emoji, scene)):
            yield scene
            count += 1
    for keyword, members in bare_keywords(emoji).items():
        for member in members:
            rows.add(member, "keyword", keyword_wordings(keyword), 1 / len(members))


def _drawn(emoji: EmojiSet, scenes: Sequence[Scene], size: int) -> Iterator[NDArray[np.uint8]]:
    """The pictures of scenes, many of them by all processors: an accelerator encodes faster than one draws."""
    processes = min(os.cpu_count() or 1, len(scenes) // _PROCESS_SCENES)
    if processes < 2:
        yield from (layouts.draw(emoji, scene, size) for scene in scenes)
        return
    with multiprocessing.get_context("spawn").Pool(processes, _set_emoji, (emoji, size)) as pool:
        yield from pool.imap(_draw, scenes, chunksize=64)


def _set_emoji(emoji: EmojiSet, size: int) -> None:
    """Makes a process ready to draw."""
    global _emoji, _size
    _emoji, _size = emoji, size


def _draw(scene: Scene) -> NDArray[np.uint8]:
    return layouts.draw(_emoji, scene, _size)


def _encoded(
    model: AutoencoderKL, pictures: Iterator[NDArray[np.uint8]], batch_size: int, context: Context
) -> Iterator[NDArray[np.float32]]:
    """Latents of pictures, a batch at a time."""
    import torch

    done = 0
    while batch := list(itertools.islice(pictures, batch_size)):
        with torch.no_grad():
            yield model.encode(to_tensor(np.stack(batch), context.device)).float().cpu().numpy()
        if (done + len(batch)) // 5000 > done // 5000:
            context.say(f"{done + len(batch)} pictures encoded")
        done += len(batch)
