"""A pack of made-up emoji, and the real one where Debian's packages are."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weights_tools.training.emoji import SPRITE_SIZE, EmojiSet, PackConfig, read_emoji, run, write_emoji
from weights_tools.training.stage import Context

# fonts-noto-color-emoji 2.042, with which the golden pictures were made.
FONT = "e5899ed38b8ed83e08bd3ac5de09791e9d19d288333a796de1d35ad17396f1ec"
NAMES = ("tiger", "red apple", "eye", "eyes", "hammer", "pick", "hammer and pick", "orange")


@pytest.fixture(scope="session")
def emoji() -> EmojiSet:
    """Smooth noise with ragged transparency; all are animals but the last three."""
    random = np.random.default_rng(7)
    pngs = []
    for _ in NAMES:
        noise = Image.fromarray(random.integers(0, 256, (9, 9, 4), np.uint8), "RGBA")
        file = io.BytesIO()
        noise.resize(SPRITE_SIZE, Image.Resampling.BICUBIC).save(file, "PNG")
        pngs.append(file.getvalue())
    keywords = tuple((("animal", "orange", "2:00") if index < 5 else ("thing",)) for index in range(len(NAMES)))
    return EmojiSet(NAMES, keywords, tuple(pngs))


@pytest.fixture
def folder(emoji: EmojiSet, tmp_path: Path) -> Path:
    """The folder of a run with a pack in it."""
    write_emoji(tmp_path / "emoji.npz", emoji)
    return tmp_path


@pytest.fixture(scope="session")
def noto(tmp_path_factory: pytest.TempPathFactory) -> EmojiSet:
    """All emoji of the product."""
    pytest.importorskip("fontTools", reason="fonttools is not installed: pip install '.[train]'")
    font, labels = Path(PackConfig().font), Path(PackConfig().labels)
    if not font.exists() or not labels.exists():
        pytest.skip("apt-get install fonts-noto-color-emoji unicode-cldr-core")
    if hashlib.sha256(font.read_bytes()).hexdigest() != FONT:
        pytest.skip("the golden pictures are of another version of fonts-noto-color-emoji")
    folder = tmp_path_factory.mktemp("noto")
    run(Context("pack", {}, folder, say=lambda _: None))
    return read_emoji(folder / "emoji.npz")
