"""Configurations, schedules, figures, and the pool of latents, all without PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import weights_tools.training
from mdrt.errors import FileError, InvalidArgumentError
from weights_tools.training import figures
from weights_tools.training.emoji import EmojiSet, PackConfig
from weights_tools.training.latents import LatentsConfig, training_scenes
from weights_tools.training.layouts import is_held_out
from weights_tools.training.pool import KINDS, Pool, directions_of, most_different, read_pool, spread
from weights_tools.training.stage import Context, LoopConfig
from weights_tools.training.tokenizer import TokenizerTraining
from weights_tools.training.vae import VaeTraining

CONFIGS = Path(weights_tools.training.__file__).parent / "configs"
LOOP = {"samples": 1000, "batch_size": 10, "learning_rate": 1.0}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sample": 3}, "no setting 'sample'"),
        ({"samples": "many"}, "whole numbers"),
        ({"samples": 5}, "at least one batch"),
        ({"decay": "fast"}, "cosine or linear"),
        ({"betas": [0.9]}, "two numbers"),
    ],
)
def test_wrong_settings(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Context("vae", LOOP | changes, tmp_path).config(LoopConfig)


def test_missing_setting(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="vae needs the setting 'learning_rate'"):
        Context("vae", {"samples": 1000, "batch_size": 10}, tmp_path).config(LoopConfig)


@pytest.mark.parametrize("cls", [PackConfig, TokenizerTraining, VaeTraining, LatentsConfig])
def test_committed_configurations(cls: type, tmp_path: Path) -> None:
    stage = {PackConfig: "pack", TokenizerTraining: "tokenizer", VaeTraining: "vae", LatentsConfig: "latents"}[cls]
    for file in CONFIGS.glob(f"*-{stage}*.json"):
        Context(stage, json.loads(file.read_text()), tmp_path).config(cls)


def test_learning_rate_follows_samples() -> None:
    config = LoopConfig(**LOOP, warm_up_samples=90, flat=0.5, decay="linear", final_learning_rate=0.2)  # type: ignore[arg-type]
    assert config.steps == 100
    rates = [config.learning_rate_at(step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and rates[8] == pytest.approx(0.9)
    assert set(rates[9:51]) == {1.0}
    assert rates[75] == pytest.approx(0.6) and rates[100] == pytest.approx(0.2)
    assert LoopConfig(**LOOP).learning_rate_at(50) == pytest.approx(0.5)  # type: ignore[arg-type]
    assert LoopConfig(**LOOP, flat=1.0).learning_rate_at(99) == 1.0  # type: ignore[arg-type]


def test_psnr() -> None:
    true = np.full((2, 8, 8, 3), 100, np.uint8)
    assert figures.psnr(true + np.uint8(10), true) == pytest.approx([20 * np.log10(25.5)] * 2)
    assert figures.psnr(true, true)[0] > 130


def test_edges() -> None:
    """A step of 100 blurred to 25, 50, 25 keeps its sum of gradients where the true step is: half of it."""
    true, blurred = np.zeros((8, 8, 3)), np.zeros((8, 8, 3))
    true[:, 4:] = 100
    blurred[:, 3:] = 25
    blurred[:, 4:] = 75
    blurred[:, 5:] = 100
    assert figures.edges(true, true) == pytest.approx(1)
    assert figures.edges(blurred, true) == pytest.approx(0.5)
    assert figures.edges(true, blurred + 0.0) == pytest.approx(1)
    faint = true / 10  # has no edges at all
    assert figures.edges(true, faint) == 0


def make_pool() -> Pool:
    latents = np.arange(3, dtype=np.float16).reshape(3, 1, 1, 1) * np.ones((1, 2, 4, 4), np.float16)
    kind = np.array([KINDS.index(name) for name in ("single", "single", "colour", "keyword")], np.uint8)
    ids = np.arange(4, dtype=np.uint16)[:, None] * np.ones((1, 5), np.uint16)
    return Pool(latents, np.array([0, 1, 2, 1], np.int32), kind, ids, np.array([3, 1, 1, 1], np.float32))


def test_pool_draws_by_kind_and_weight(tmp_path: Path) -> None:
    make_pool().save(tmp_path / "latents.npz")
    pool = read_pool(tmp_path / "latents.npz")
    chances = {"single": 2, "colour": 1, "keyword": 1, "image": 5}
    rows = pool.sample(np.random.default_rng(0), 8000, chances)
    counts = np.bincount(rows, minlength=4) / 8000
    assert counts == pytest.approx([0.375, 0.125, 0.25, 0.25], abs=0.03)  # 5 standard deviations
    assert pool.members[pool.choices(np.arange(4))].tolist() == [[0], [1], [2], [1]]


def open_pool(kind: str, count: int, channels: int) -> Pool:
    """`count` random pictures of one caption, and one of another."""
    latents = np.random.default_rng(1).standard_normal((count + 1, channels, 4, 4)).astype(np.float16)
    kinds = np.array([KINDS.index(kind)] * count + [KINDS.index("single")], np.uint8)
    ids = np.array([[7]] * count + [[8]], np.uint16)
    return Pool(latents, np.arange(count + 1, dtype=np.int32), kinds, ids, np.ones(count + 1, np.float32))


def test_rows_of_one_caption_leave_the_choice() -> None:
    """Each member has a direction, as far as it can be from the others'."""
    pool = open_pool("keyword", 3, 2)
    choices = pool.choices(np.array([3, 1]))
    assert pool.members[choices].tolist() == [[3, 3, 3], [0, 1, 2]]  # fewer choices are repeated
    directions = pool.directions[choices[1]]
    np.testing.assert_allclose(directions @ directions.T, 1.5 * np.eye(3) - 0.5, atol=1e-5)
    assert not pool.directions[choices[0]].any()


def test_keywords_share_their_directions() -> None:
    """Corners of one simplex, each for the picture whose means are most like it."""
    random = np.random.default_rng(3)
    corners = directions_of(random.standard_normal((9, 8)).astype(np.float32))
    np.testing.assert_allclose(corners @ corners.T, 1.125 * np.eye(9) - 0.125, atol=1e-5)
    few = directions_of(corners[[4, 1, 7]] + 0.1 * random.standard_normal((3, 8)).astype(np.float32))
    np.testing.assert_array_equal(few, corners[[4, 1, 7]])
    alike = {row.tobytes() for row in directions_of(np.ones((5, 8), np.float32))}
    assert len(alike) == 5 and alike < {row.tobytes() for row in corners}


@pytest.mark.parametrize("kind, expected", [("keyword", 9), ("image", 30)])
def test_few_of_a_keywords_pictures_can_be_chosen_and_all_of_a_folder(kind: str, expected: int) -> None:
    pool = open_pool(kind, 30, 8)
    choices = pool.choices(np.array([0]))[0]
    chosen = pool.members[choices]
    assert len(set(chosen.tolist())) == len(chosen) == expected and chosen.max() < 30
    noise = np.random.default_rng(0).standard_normal((20000, 8)).astype(np.float32)
    counts = np.bincount((noise @ pool.directions[choices].T).argmax(1), minlength=expected)
    assert counts.min() > 0.5 * 20000 / expected


def test_the_most_different_pictures_are_chosen() -> None:
    latents = np.array([0, 0.1, 0.2, 5, 5.1, 9], np.float16).reshape(6, 1, 1, 1)
    assert most_different(latents, 3).tolist() == [0, 3, 5]  # 5 is nearest to the average
    assert most_different(latents, 6).tolist() == [0, 1, 2, 3, 4, 5]


def test_pictures_with_the_same_means_have_no_direction() -> None:
    assert not spread(np.ones((4, 3), np.float32)).any()


def test_pool_refuses(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no kind 'pairs'"):
        make_pool().sample(np.random.default_rng(0), 1, {"pairs": 1})
    with pytest.raises(InvalidArgumentError, match="no pictures of the kinds image"):
        make_pool().sample(np.random.default_rng(0), 1, {"image": 1})
    with pytest.raises(FileError, match="no pool of latents"):
        read_pool(tmp_path / "missing.npz")


def test_no_scene_of_the_training_set_is_held_out(emoji: EmojiSet) -> None:
    config = LatentsConfig(beside=200, above=100, larger=50, counts=50)
    scenes = list(training_scenes(emoji, config))
    assert {kind for kind, _ in scenes} == set(KINDS) - {"keyword", "image"}
    assert not any(is_held_out(emoji, scene) for _, scene in scenes)
    assert scenes == list(training_scenes(emoji, config))
