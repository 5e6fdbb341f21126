"""From nothing to one step: all stages by the tiny configurations, about five minutes on two cores."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[test,train]'")

from weights_tools.training.__main__ import main
from weights_tools.training.emoji import EmojiSet, write_emoji

pytestmark = pytest.mark.tiny
CONFIGS = Path(__file__).parent.parent.parent / "weights_tools" / "training" / "configs"
STAGES = ("tokenizer", "vae", "latents", "base", "relu", "guidance", "progressive", "ufogen", "evaluate")
CONCEPTS = 12


def test_twelve_emoji(noto: EmojiSet, tmp_path: Path) -> None:
    write_emoji(tmp_path / "emoji.npz", noto)
    for stage in STAGES:
        assert (
            main([stage, "--config", str(CONFIGS / f"tiny-{stage}.json"), "-o", str(tmp_path), "--device", "cpu"]) == 0
        )
    figures = json.loads((tmp_path / "evaluate" / "figures.json").read_text())["figures"]
    for model in ("progressive/light", "ufogen/light"):
        assert round(CONCEPTS * figures[model]["1"]["identity"]) >= 8, figures[model]
