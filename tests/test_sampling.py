"""The sampling loop of the library against the same arithmetic in NumPy, on the built-in model.

Its steps are float64 without contraction, rounded once to float32: what NumPy does, so bits must be equal.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from mdrt import _core, models, schedulers
from mdrt.errors import InvalidArgumentError, MemoryLimitError, NumericError
from weights_tools.convert import convert

PROMPT = "tiger on a blue background"
SHAPE = (1, 8, 16, 16)
DATA = Path(__file__).parent / "data"
YARDSTICK = str(DATA / "emoji-fp16.mdrt")


@pytest.fixture(scope="module")
def model():
    return _core.Model(models.builtin_path())


@pytest.fixture(scope="module")
def pipeline(model):
    return json.loads(model.metadata())["pipeline"]


def finish(job):
    while job.advance()[0] != 3:
        pass
    return job


def latents(model, **options):
    job = finish(_core.Job(model, PROMPT, latent_only=True, **options))
    result = job.latents()
    job.close()
    return result


def noise(seed, offset):
    return _core.philox_normal(seed, offset, int(np.prod(SHAPE))).reshape(SHAPE)


def rows(*columns):
    return np.array([[row.get(name, 0.0) for name in schedulers.COLUMNS] for row in columns])


def nhwc(array):
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


def nchw(array):
    return np.ascontiguousarray(np.moveaxis(array, -1, 1))


def simulate(table, seed, sigma):
    """The linear update for rows that ignore the model's output."""
    x = (noise(seed, 0).astype(np.float64) * sigma).astype(np.float32)
    kept, offset = [], 1
    for row in table:
        c = dict(zip(schedulers.COLUMNS, row, strict=True))
        wide = x.astype(np.float64)
        y = c["p"] * wide
        if c["clip"] > 0:
            y = np.clip(y, -c["clip"], c["clip"])
        x = c["a"] * wide + c["b"] * y
        for k, past in enumerate(kept[:3]):
            x = x + c[f"c{k + 1}"] * past.astype(np.float64)
        if c["d"] != 0:
            x = x + c["d"] * noise(seed, offset).astype(np.float64)
            offset += 1
        if c["keep"] == 1:
            kept.insert(0, y.astype(np.float32))
        x = x.astype(np.float32)
    return x


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_update_keeps_earlier_predictions_and_draws_noise_in_order(model, seed):
    table = rows(
        {"t": 999, "p": 0.3, "a": 0.9, "b": 0.1, "keep": 1},
        {"t": 800, "p": 1.7, "clip": 0.5, "b": 1.1, "a": -0.2, "c1": 0.31, "d": 0.7, "keep": 1},
        {"t": 600, "p": 0.9, "a": 0.3, "b": 0.77, "c1": -0.4, "c2": 0.6},
        {"t": 400, "p": -1.3, "clip": 2, "b": 0.5, "c1": 0.1, "c2": 0.2, "d": 0.01, "keep": 1},
        {"t": 200, "p": 0.1, "a": 1, "b": 1, "c1": 0.21, "c2": 0.32, "c3": 0.43, "d": -0.5, "keep": 1},
        {"t": 1, "p": 1, "a": 0.5, "c1": 0.1, "c2": 0.2, "c3": 0.3},
    )
    got = latents(model, seed=seed, schedule=table, init_noise_sigma=1.25, guidance_scale=1)
    np.testing.assert_array_equal(got, simulate(table, seed, 1.25))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0, 7.5])
def test_guided_model_output(model, guidance_scale):
    """One row that returns the model's output."""
    table = rows({"t": 500, "e": 1})
    got = latents(model, seed=3, schedule=table, guidance_scale=guidance_scale, negative_prompt="blue")
    texts = [PROMPT] if guidance_scale == 1 else ["blue", PROMPT]
    ids = np.array([model.tokenize(text) for text in texts], dtype=np.int32)
    context = model.run("text_encoder", {"input_ids": ids}, ["last_hidden_state"])["last_hidden_state"]
    feeds = {
        "sample": np.repeat(nhwc(noise(3, 0)), len(texts), axis=0),
        "timestep": np.full(len(texts), 500, dtype=np.float32),
        "encoder_hidden_states": context,
    }
    out = model.run("unet", feeds, ["out_sample"])["out_sample"].astype(np.float64)
    guided = out[0] if len(texts) == 1 else out[0] + guidance_scale * (out[1] - out[0])
    np.testing.assert_array_equal(got, nchw(guided[np.newaxis]).astype(np.float32))


def test_given_latents_are_scaled_like_drawn_ones(model):
    table = schedulers.make_rows({"prediction_type": "v_prediction"}, "ddim", 3).rows
    options = {"seed": 5, "schedule": table, "init_noise_sigma": 0.5}
    drawn = latents(model, **options)
    np.testing.assert_array_equal(latents(model, latents=noise(5, 0), **options), drawn)
    assert not np.array_equal(latents(model, latents=noise(6, 0), **options), drawn)


def test_pixels_are_the_rounded_decoder_output(model, pipeline):
    job = finish(_core.Job(model, PROMPT, seed=1))
    latent, pixels = job.latents(), job.pixels()
    job.close()
    scaled = latent.astype(np.float64) / pipeline["scaling_factor"] + pipeline["shift_factor"]
    image = model.run("vae_decoder", {"latent_sample": nhwc(scaled.astype(np.float32))}, ["sample"])["sample"]
    unit = np.clip(image[0] / np.float32(2) + np.float32(0.5), 0, 1)
    np.testing.assert_array_equal(pixels, np.rint(unit * np.float32(255)).astype(np.uint8))


def test_stored_schedules_are_those_that_python_makes(model, pipeline):
    stored = {name: array for name, _, _, array in model.tensors() if name.startswith("schedules/")}
    assert len(stored) == len(pipeline["schedules"])
    for entry in pipeline["schedules"]:
        steps = entry["num_inference_steps"]
        made = schedulers.make_rows(pipeline["scheduler_config"], entry["scheduler"], steps)
        np.testing.assert_array_equal(stored[f"schedules/{steps}"][:, :14], made.rows)
        assert entry["init_noise_sigma"] == made.init_noise_sigma


def test_stored_schedule_and_given_rows_make_the_same_latent(model, pipeline):
    made = schedulers.make_rows(pipeline["scheduler_config"], "ddim", 8).rows
    stored = latents(model, seed=2, num_inference_steps=8, guidance_scale=2)
    np.testing.assert_array_equal(latents(model, seed=2, schedule=made, guidance_scale=2), stored)


def test_guidance_that_is_not_given_is_the_nearest_stored_one(pipeline, tmp_path):
    """Eight steps have a guidance scale of their own, and seven take it."""
    convert(DATA / "micro-a", tmp_path / "b.mdrt", steps=[1, 8], guidance_scale=[1, 2])
    model = _core.Model(str(tmp_path / "b.mdrt"))
    made = schedulers.make_rows(pipeline["scheduler_config"], "ddim", 7).rows
    guided, plain = (latents(model, seed=2, schedule=made, guidance_scale=scale) for scale in (2, 1))
    np.testing.assert_array_equal(latents(model, seed=2, schedule=made), guided)
    assert not np.array_equal(guided, plain)


def test_events(model):
    job = _core.Job(model, PROMPT, seed=1, num_inference_steps=8, guidance_scale=2)
    events = [job.advance()]
    while events[-1][0] != 3:
        events.append(job.advance())
    job.close()
    stages, steps, totals, fractions = zip(*events, strict=True)
    assert list(stages) == sorted(stages)
    assert set(stages) == {0, 1, 2, 3}
    assert [step for stage, step in zip(stages, steps, strict=True) if stage == 1] == sorted(
        step for stage, step in zip(stages, steps, strict=True) if stage == 1
    )
    assert set(steps) == set(range(9)) and set(totals) == {8}
    assert all(before <= after for before, after in itertools.pairwise(fractions))
    assert 0 < fractions[0] < 0.2 and fractions[-1] == 1
    assert fractions.count(1) == 1


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"p": float("nan")}, "row 1 holds a number that is not finite"),
        ({"d": float("inf")}, "row 1 holds a number that is not finite"),
        ({"clip": -1.0}, "row 1 has clip -1"),
        ({"keep": 0.5}, "row 1 has keep 0.5"),
        ({"c2": 1.0}, "row 1 uses y2, but only 1 earlier"),
    ],
)
def test_rows_that_are_refused(model, row, words):
    table = rows({"a": 1, "keep": 1}, {"a": 1, **row})
    with pytest.raises(InvalidArgumentError, match=words):
        _core.Job(model, PROMPT, schedule=table)


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("inf"), float("nan")])
def test_init_noise_sigma_that_is_refused(model, sigma):
    with pytest.raises(InvalidArgumentError, match="init_noise_sigma"):
        _core.Job(model, PROMPT, schedule=rows({"a": 1}), init_noise_sigma=sigma)


def test_values_that_are_not_finite_are_an_error_and_never_a_picture(model):
    job = _core.Job(model, PROMPT, schedule=rows({"a": 1}, {"a": 1e300}, {"a": 1}))
    with pytest.raises(NumericError, match="model call 2 of 3"):
        finish(job)
    with pytest.raises(InvalidArgumentError, match="failed or was cancelled"):
        job.pixels()
    job.close()
    assert latents(model, seed=1).shape == SHAPE


def test_decoder_output_that_is_not_finite_is_an_error():
    """In fp16: a static int8 input clamps what is not finite."""
    job = _core.Job(_core.Model(YARDSTICK), PROMPT, schedule=rows({"a": 1e38}))
    with pytest.raises(NumericError, match="decoder"):
        finish(job)
    job.close()


def test_memory_is_refused_before_any_work():
    with pytest.raises(MemoryLimitError, match=r"needs [\d.]+ MB.*limit is [\d.]+ MB"):
        _core.Job(_core.Model(models.builtin_path(), max_memory=100_000), PROMPT)


def test_other_sizes(model):
    job = finish(_core.Job(model, PROMPT, seed=1, width=104, height=72))
    assert job.pixels().shape == (72, 104, 3)
    assert job.latents().shape == (1, 8, 9, 13)
    job.close()
