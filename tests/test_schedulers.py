"""Schedule rows against steps that diffusers made (tests/data/schedules.json), and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mdrt import schedulers
from mdrt.errors import InvalidArgumentError, UnsupportedError

GOLDEN = json.loads((Path(__file__).parent / "data" / "schedules.json").read_text())
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def apply(row: np.ndarray, x: np.ndarray, out: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x', y) of one row, in float64, without kept values."""
    c = dict(zip(schedulers.COLUMNS, row, strict=True))
    y = c["p"] * x + c["q"] * out
    if c["clip"] > 0:
        y = np.clip(y, -c["clip"], c["clip"])
    return c["a"] * x + c["b"] * y + c["e"] * out + c["d"] * noise, y


def relative_rmse(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_steps_equal_those_of_diffusers(case: dict) -> None:
    x, out, noise = (np.array(GOLDEN[name]) for name in ("x", "out", "noise"))
    cls = schedulers.SCHEDULERS[case["scheduler"]]
    config = schedulers.SchedulerConfig.from_mapping(case["config"])
    scheduler = cls(config, eta=case["eta"]) if case["eta"] else cls(config)
    assert scheduler.timesteps(case["steps"]).tolist() == case["timesteps"]
    rows = scheduler.rows(case["steps"])
    assert rows.shape == (len(case["timesteps"]), 14)
    assert rows[:, 0].tolist() == case["timesteps"]
    for row, x_next, x0 in zip(rows, case["x_next"], case["x0"], strict=True):
        got, y = apply(row, x, out, noise)
        assert relative_rmse(got, np.array(x_next)) <= 1e-5
        assert relative_rmse(y, np.array(x0)) <= 1e-5


@pytest.mark.parametrize("spacing", schedulers.TIMESTEP_SPACINGS)
def test_every_count_makes_as_many_falling_timesteps(spacing: str) -> None:
    scheduler = schedulers.DDIMScheduler.from_config({"timestep_spacing": spacing})
    for steps in range(1, 1001):
        timesteps = scheduler.timesteps(steps)
        assert len(timesteps) == steps
        assert timesteps[0] <= 999 and timesteps[-1] >= 0
        assert np.all(np.diff(timesteps) < 0)


@pytest.mark.parametrize("scheduler", ["ddim", "ufogen"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20])
def test_every_row_keeps_the_variance(scheduler: str, steps: int) -> None:
    """The levels have unit variance, and the last one has no noise."""
    rows, sigma = schedulers.make_rows({**ZERO_SNR, "clip_sample": False}, scheduler, steps)
    assert sigma == 1
    assert rows.dtype == np.float64 and np.isfinite(rows).all()
    m, n = rows[:, 12], rows[:, 13]
    np.testing.assert_allclose(m**2 + n**2, 1, rtol=1e-12)
    assert (m[-1], n[-1]) == (1, 0)


def test_one_step_of_zero_snr_returns_the_clean_latent() -> None:
    for scheduler in ("ddim", "ufogen"):
        rows, _ = schedulers.make_rows({**ZERO_SNR, "clip_sample": False}, scheduler, 1)
        x, out = np.array([3.0, -1.0]), np.array([0.5, 0.25])
        np.testing.assert_allclose(apply(rows[0], x, out, x)[0], -out, atol=1e-12)


def test_names() -> None:
    assert schedulers.scheduler_name({"_class_name": "DDIMScheduler"}) == "ddim"
    assert schedulers.scheduler_name({"_class_name": "UFOGenScheduler"}) == "ufogen"
    for config in ({}, {"_class_name": "EulerDiscreteScheduler"}):
        with pytest.raises(UnsupportedError, match="DDIMScheduler, UFOGenScheduler"):
            schedulers.scheduler_name(config)
    with pytest.raises(UnsupportedError, match=r"'euler'.*ddim, ufogen"):
        schedulers.make_rows({}, "euler", 4)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"thresholding": True}, UnsupportedError, "thresholding"),
        ({"rescale_betas_zero_snr": True}, UnsupportedError, "epsilon-prediction with zero terminal SNR"),
        ({"prediction_type": "flow"}, InvalidArgumentError, "prediction_type.*'flow'.*epsilon, v_prediction, sample"),
        ({"beta_schedule": "sigmoid"}, InvalidArgumentError, "beta_schedule"),
        ({"timestep_spacing": "karras"}, InvalidArgumentError, "timestep_spacing"),
        ({"num_train_timesteps": 0}, InvalidArgumentError, "num_train_timesteps"),
        ({"num_train_timesteps": 2.5}, InvalidArgumentError, "num_train_timesteps"),
        ({"num_train_timesteps": float("nan")}, InvalidArgumentError, "num_train_timesteps"),
        ({"num_train_timesteps": float("inf")}, InvalidArgumentError, "num_train_timesteps"),
        ({"num_train_timesteps": 10**12}, InvalidArgumentError, "num_train_timesteps"),
        ({"beta_start": "0.1"}, InvalidArgumentError, "beta_start"),
        ({"beta_start": 0.0}, InvalidArgumentError, "betas must lie"),
        ({"beta_end": float("nan")}, InvalidArgumentError, "beta_end"),
        ({"clip_sample": 1}, InvalidArgumentError, "clip_sample"),
        ({"clip_sample_range": float("inf")}, InvalidArgumentError, "clip_sample_range"),
        ({"clip_sample_range": 0}, InvalidArgumentError, "clip_sample_range"),
        ({"steps_offset": -1}, InvalidArgumentError, "steps_offset"),
        ({"steps_offset": 500, "timestep_spacing": "leading"}, InvalidArgumentError, "lies beyond"),
        ({"trained_betas": "many"}, InvalidArgumentError, "trained_betas"),
        ({"trained_betas": [0.1, None]}, InvalidArgumentError, "trained_betas"),
        ({"trained_betas": [0.1, 0.2]}, InvalidArgumentError, "trained_betas has 2"),
        ({"num_train_timesteps": 2, "trained_betas": [0.1, 1.2]}, InvalidArgumentError, "betas must lie"),
        ({"num_train_timesteps": 1, **ZERO_SNR}, InvalidArgumentError, "rescale_betas_zero_snr"),
        ({"beta_end": 0.9, **ZERO_SNR}, InvalidArgumentError, "rescale_betas_zero_snr"),
    ],
)
def test_configurations_that_are_refused(config: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        schedulers.make_rows(config, "ddim", min(2, config.get("num_train_timesteps", 2)) or 1)


@pytest.mark.parametrize("steps", [0, -1, 1001, 1.5, True, None, "8"])
@pytest.mark.parametrize("scheduler", ["ddim", "ufogen"])
def test_numbers_of_steps_that_are_refused(scheduler: str, steps: object) -> None:
    with pytest.raises(InvalidArgumentError, match="num_inference_steps"):
        schedulers.make_rows({}, scheduler, steps)  # type: ignore[arg-type]


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(InvalidArgumentError, match="eta"):
        schedulers.DDIMScheduler(schedulers.SchedulerConfig(), eta=eta)


def test_null_means_the_default() -> None:
    nothing = dict.fromkeys(schedulers.SchedulerConfig.__dataclass_fields__)
    np.testing.assert_array_equal(
        schedulers.make_rows(nothing, "ddim", 4).rows, schedulers.make_rows({}, "ddim", 4).rows
    )
