"""What is asked, and what counts as right."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mdrt.errors import InvalidArgumentError
from weights_tools.training import heldout, layouts
from weights_tools.training.emoji import EmojiSet
from weights_tools.training.evaluate import EvaluateConfig
from weights_tools.training.identity import Gallery, share_of_members
from weights_tools.training.layouts import Scene
from weights_tools.training.questions import ask, sheet, start_noise
from weights_tools.training.stage import Context


@pytest.fixture(scope="module")
def gallery(emoji: EmojiSet) -> Gallery:
    return Gallery(emoji)


def picture(emoji: EmojiSet, scene: Scene) -> np.ndarray:
    return layouts.draw(emoji, scene)[np.newaxis]


@pytest.mark.parametrize(
    "scene", [layouts.single(3), layouts.single(2, "teal"), Scene("beside", (0, 5)), Scene("beside", (4, 1), "black")]
)
def test_true_pictures_are_right(emoji: EmojiSet, gallery: Gallery, scene: Scene) -> None:
    true = picture(emoji, scene)
    assert gallery.is_right(true, [scene]).tolist() == [True]
    assert gallery.nearest(true, scene.layout, scene.colour).tolist() == [list(scene.emoji)]
    noisy = np.clip(true + np.random.default_rng(0).normal(0, 20, true.shape), 0, 255).astype(np.uint8)
    assert gallery.is_right(noisy, [scene]).tolist() == [True]


def test_each_place_and_the_border_count(emoji: EmojiSet, gallery: Gallery) -> None:
    scene = Scene("beside", (0, 5))
    for wrong in (Scene("beside", (0, 4)), Scene("beside", (1, 5)), Scene("beside", (5, 0))):
        assert not gallery.is_right(picture(emoji, wrong), [scene])[0]
    almost = picture(emoji, scene).copy()
    almost[:, :6, :, 2] -= 79  # the mean of both borders is 39.5 grey levels off
    assert gallery.is_right(almost, [scene])[0]
    almost[:, :6, :, 2] -= 2
    assert not gallery.is_right(almost, [scene])[0]


def test_scenes_keep_their_order(emoji: EmojiSet, gallery: Gallery) -> None:
    scenes = [layouts.single(1), Scene("beside", (2, 3)), layouts.single(4, "red"), layouts.single(2)]
    pictures = np.concatenate([picture(emoji, scene) for scene in scenes])
    asked = [*scenes[:3], layouts.single(3)]
    assert gallery.is_right(pictures, asked).tolist() == [True, True, True, False]


def test_nearest_is_the_smallest_squared_difference(emoji: EmojiSet, gallery: Gallery) -> None:
    """Of pictures far from all emoji, as the definition says it."""

    def small(picture: np.ndarray) -> np.ndarray:
        place = Image.fromarray(picture).crop((64, 33, 126, 95)).resize((24, 24), Image.Resampling.BOX)
        return np.asarray(place).astype(np.int64)

    random = np.random.default_rng(1)
    levels = random.integers(0, 256, (20, 1, 1, 3))
    pictures = np.clip(random.normal(levels, 60, (20, 128, 128, 3)), 0, 255).astype(np.uint8)
    true = [small(layouts.draw(emoji, Scene("beside", (index, index), "red"))) for index in range(len(emoji))]
    expected = [np.argmin([((small(picture) - other) ** 2).sum() for other in true]) for picture in pictures]
    assert len(set(expected)) > 1
    assert gallery.nearest(pictures, "beside", "red")[:, 1].tolist() == expected


def test_members() -> None:
    shown = np.array([3, 3, 5, 9, 1])
    assert share_of_members(shown, (3, 5, 7)) == (0.6, 2)
    assert share_of_members(shown, (8,)) == (0.0, 0)


def test_questions(emoji: EmojiSet) -> None:
    questions = ask(emoji, (), compositions=200, keywords=1)
    assert questions.prompts["single"] == list(emoji.names)
    for kind in ("colours", "pairs"):
        assert questions.scenes[kind] and all(layouts.is_held_out(emoji, scene) for scene in questions.scenes[kind])
    assert questions.keywords == {"animal": (0, 1, 2, 3, 4)}
    assert questions.keyword_prompts == {"animal": "an animal"}
    some = ask(emoji, ("eyes", "tiger"), compositions=200, keywords=1)
    assert [scene.emoji for scene in some.scenes["single"]] == [(3,), (0,)] and not some.keywords
    with pytest.raises(InvalidArgumentError, match="no emoji called 'unicorn pegasus'"):
        ask(emoji, ("unicorn pegasus",), 1, 1)


def test_questions_about_all_are_the_committed_list(noto: EmojiSet) -> None:
    questions = ask(noto, (), compositions=200, keywords=40)
    keys = [
        heldout.key([noto.names[index] for index in scene.emoji], scene.colour)
        for kind in ("colours", "pairs")
        for scene in questions.scenes[kind]
    ]
    assert sorted(keys) == sorted(heldout.read_list())
    prompts, scenes = sheet(questions)
    assert len(prompts) == len(scenes) == len(set(prompts)) == 32
    assert len(questions.keywords) == 40 and all(len(members) >= 5 for members in questions.keywords.values())


def test_start_noise_follows_from_prompt_and_seed() -> None:
    noise = start_noise("tiger", 2, (8, 16, 16), 0)
    assert noise.shape == (2, 8, 16, 16) and noise.dtype == np.float32 and abs(noise.std() - 1) < 0.1
    assert np.array_equal(noise[:1], start_noise("tiger", 1, (8, 16, 16), 0))
    assert not np.array_equal(noise, start_noise("tigers", 2, (8, 16, 16), 0))
    assert not np.array_equal(noise, start_noise("tiger", 2, (8, 16, 16), 1))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "must name what to evaluate"),
        ({"bundles": ["built-in"], "formats": ["fp16"]}, "there is none"),
        ({"bundles": ["built-in"], "num_inference_steps": [1]}, "one number for each"),
    ],
)
def test_wrong_settings(tmp_path: object, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Context("evaluate", settings, tmp_path).config(EvaluateConfig)  # type: ignore[arg-type]
