"""Makes a trained pipeline directory the built-in model: `python tests/oracle/write_built_in.py RUN ufogen/light`.

Writes the int8 bundle of the package, the fp16 one by which its quality is judged, the pictures, drawn in float32 by
PyTorch, with which `mdrt selftest` compares, the list of what the model knows, and the pictures of README and docs.
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from mdrt import Pipeline, models, png
from mdrt.files import replacing
from mdrt.selftest import GOLDEN
from weights_tools.convert import convert
from weights_tools.training.captions import bare_keywords
from weights_tools.training.drawing import TorchDrawer
from weights_tools.training.emoji import EmojiSet, read_training_emoji
from weights_tools.training.latents import read_concepts

ROOT = Path(__file__).parents[2]
YARDSTICK = ROOT / "tests" / "data" / "emoji-fp16.mdrt"
CONCEPTS = ROOT / "docs" / "built-in-model-concepts.md"
# Pages with pictures of the built-in model: the alternative text of each is its prompt.
PAGES = (ROOT / "README.md", ROOT / "docs" / "built-in-model.md")
LICENSE = (
    "Apache-2.0; draws Noto Color Emoji (Google, Apache-2.0 and OFL-1.1) "
    "by names and keywords of the Unicode CLDR (Unicode License v3)"
)
# Model calls and guidance scale of the two schedules that the package stores: neither needs guidance.
SCHEDULES = {1: 1.0, 8: 1.0}
# Layers of the UNet that int8 changes by more keep float inputs or are fp16, so that pictures keep to the bars of
# test_quality_oracle.py.
MAX_ERROR = {"unet": 0.0072}
# What the pictures to compare with show, and their model calls.
PICTURES = {"tiger on a blue background": 1, "rocket on a black background": 8}
# Of all pictures in README and docs: the first that came.
SEED = 0
_CONCEPTS_HEAD = """# What the built-in model knows

{}, listed by `tests/oracle/write_built_in.py`. How prompts are made of
them: [built-in-model.md](built-in-model.md). The words are those of the Unicode CLDR, copyright Unicode, Inc., under
the [Unicode License v3](https://www.unicode.org/license.txt).

## Names"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a training")
    parser.add_argument("pipeline", help="a pipeline directory in it")
    arguments = parser.parse_args()
    write_bundles(arguments.run / arguments.pipeline)
    write_golden(arguments.run / arguments.pipeline)
    write_concepts(read_training_emoji(arguments.run, read_concepts(arguments.run)))
    for page in PAGES:
        draw_pictures(page)


def write_bundles(pipeline: Path) -> None:
    built_in = Path(models.__file__).parent / f"{models.BUILTIN_NAME}.mdrt"
    write = partial(convert, pipeline, steps=[*SCHEDULES], guidance_scale=[*SCHEDULES.values()], license=LICENSE)
    write(built_in, "int8", max_error=MAX_ERROR)
    write(YARDSTICK, "fp16")


def write_golden(pipeline: Path) -> None:
    drawer = TorchDrawer(pipeline)
    noise = np.random.default_rng(0).standard_normal((len(PICTURES), *drawer.shape), dtype=np.float32)
    images = [
        drawer.draw([prompt], noise[number : number + 1], steps, SCHEDULES[steps])[0]
        for number, (prompt, steps) in enumerate(PICTURES.items())
    ]
    with replacing(GOLDEN) as file:
        np.savez_compressed(
            file,
            prompts=[*PICTURES],
            noise=noise,
            images=np.stack(images),
            num_inference_steps=[*PICTURES.values()],
            guidance_scale=[SCHEDULES[steps] for steps in PICTURES.values()],
        )


def write_concepts(emoji: EmojiSet) -> None:
    """The page of names and keywords, a paragraph for each initial."""
    keywords = sorted(bare_keywords(emoji))
    initials = groupby(sorted(emoji.names), key=lambda name: name[0] if name[0].isalpha() else "")
    counts = f"{len(emoji):,} names and {len(keywords)} keywords"
    paragraphs = [_CONCEPTS_HEAD.format(counts), *("; ".join(names) for _, names in initials)]
    paragraphs += ["## Keywords", "; ".join(keywords)]
    with replacing(CONCEPTS) as file:
        file.write(("\n\n".join(paragraphs) + "\n").encode())


def draw_pictures(page: Path) -> None:
    """Draws every picture of a page with the built-in model; the files say how they were made."""
    with Pipeline() as pipe:
        for prompt, file in re.findall(r"!\[([^\]]*)\]\((\S+\.png)\)", page.read_text(encoding="utf-8")):
            path = page.parent / file
            path.parent.mkdir(exist_ok=True)
            png.write(pipe(prompt, seed=SEED), path)


if __name__ == "__main__":
    main()
