"""Makes a trained pipeline directory the built-in model: `python tests/oracle/write_built_in.py RUN/ufogen/light`.

Writes the int8 bundle of the package, the fp16 one by which its quality is judged, and the pictures, drawn in float32
by PyTorch, with which `mdrt selftest` compares.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mdrt import models
from mdrt.files import replacing
from mdrt.selftest import GOLDEN
from weights_tools.convert import convert
from weights_tools.training.drawing import TorchDrawer

YARDSTICK = Path(__file__).parent.parent / "data" / "emoji-fp16.mdrt"
LICENSE = "Apache-2.0; draws Noto Emoji (Google, Apache-2.0 and OFL-1.1)"
# Model calls and guidance scale of the two schedules that the package stores; guidance is distilled in.
SCHEDULES = {1: 1.0, 8: 1.0}
# What the pictures to compare with show, and their model calls.
PICTURES = {"tiger on a blue background": 1, "rocket on a black background": 8}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pipeline", type=Path, help="a pipeline directory")
    pipeline = parser.parse_args().pipeline
    for format, path in (("int8", Path(models.__file__).parent / f"{models.BUILTIN_NAME}.mdrt"), ("fp16", YARDSTICK)):
        convert(pipeline, path, format, steps=[*SCHEDULES], guidance_scale=[*SCHEDULES.values()], license=LICENSE)
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


if __name__ == "__main__":
    main()
