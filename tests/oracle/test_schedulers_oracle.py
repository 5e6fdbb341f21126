"""Schedule rows against diffusers' DDIMScheduler on random configurations.

Run as a program, it writes tests/data/schedules.json, from which the plain tests work without diffusers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mdrt import schedulers

torch = pytest.importorskip("torch", reason="the oracle needs PyTorch")
diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")

pytestmark = pytest.mark.oracle

CONFIGURATIONS = 300


def relative_rmse(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2)))


def random_config(rng: np.random.Generator) -> dict[str, Any]:
    """Any configuration that defines a predicted sample at every timestep."""
    prediction_type = str(rng.choice(schedulers.PREDICTION_TYPES))
    train = int(rng.choice([100, 500, 1000]))
    config: dict[str, Any] = {
        "num_train_timesteps": train,
        "beta_start": float(rng.choice([0.0001, 0.00085, 0.002])),
        "beta_end": float(rng.choice([0.012, 0.02])),
        "beta_schedule": str(rng.choice(schedulers.BETA_SCHEDULES)),
        "clip_sample": bool(rng.integers(2)),
        "clip_sample_range": float(rng.choice([0.5, 1.0, 2.5])),
        "set_alpha_to_one": bool(rng.integers(2)),
        "steps_offset": int(rng.integers(2)),
        "prediction_type": prediction_type,
        "timestep_spacing": str(rng.choice(schedulers.TIMESTEP_SPACINGS)),
        "rescale_betas_zero_snr": prediction_type != "epsilon" and bool(rng.integers(2)),
    }
    if rng.integers(8) == 0:
        config["trained_betas"] = np.sort(rng.uniform(0.0005, 0.02, train)).tolist()
    return config


def step(
    reference: Any, timestep: int, x: np.ndarray, out: np.ndarray, noise: np.ndarray, eta: float
) -> tuple[np.ndarray, np.ndarray]:
    """(x', x0) of diffusers in float32."""
    x_next, x0 = reference.step(
        torch.from_numpy(out),
        timestep,
        torch.from_numpy(x),
        eta=eta,
        variance_noise=torch.from_numpy(noise),
        return_dict=False,
    )
    return x_next.numpy(), x0.numpy()


def apply(row: np.ndarray, x: np.ndarray, out: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    c = dict(zip(schedulers.COLUMNS, row, strict=True))
    y = c["p"] * x + c["q"] * out
    if c["clip"] > 0:
        y = np.clip(y, -c["clip"], c["clip"])
    return c["a"] * x + c["b"] * y + c["e"] * out + c["d"] * noise, y


def make_reference(config: dict[str, Any], eta: float, monkeypatch: pytest.MonkeyPatch) -> Any:
    """diffusers' scheduler without the two accidents of its float32 arithmetic that a row would have to copy.

    PyTorch's square root comes from MKL, is off by up to 0.75 units in the last place and differs between machines;
    rescaling to zero terminal SNR magnifies that. With eta, `1 - alpha - std**2` cancels: in float32 it is noise or NaN
    where it is 0.
    """
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "sqrt", lambda tensor: torch.from_numpy(np.sqrt(tensor.numpy())))
        reference = diffusers.DDIMScheduler(**config)
    if eta > 0:
        reference.alphas_cumprod = reference.alphas_cumprod.double()
        reference.final_alpha_cumprod = reference.final_alpha_cumprod.double()
    return reference


def arrays(rng: np.random.Generator, shape: tuple[int, ...]) -> list[np.ndarray]:
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(3)]


@pytest.mark.parametrize("seed", range(CONFIGURATIONS))
def test_ddim(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    config = random_config(rng)
    eta = float(rng.choice([0.0, 0.0, 0.3, 0.9]))
    steps = int(rng.choice([1, 2, 3, 4, 7, 8, 20, 50]))
    reference = make_reference(config, eta, monkeypatch)
    reference.set_timesteps(steps)
    scheduler = schedulers.DDIMScheduler(schedulers.SchedulerConfig.from_mapping(config), eta=eta)
    np.testing.assert_array_equal(scheduler.alphas_cumprod, reference.alphas_cumprod.float().numpy())
    timesteps = reference.timesteps.numpy()[:steps]
    np.testing.assert_array_equal(scheduler.timesteps(steps), timesteps)
    for row, timestep in zip(scheduler.rows(steps), timesteps, strict=True):
        x, out, noise = arrays(rng, (1, 4, 16, 16))
        want, want_x0 = step(reference, int(timestep), x, out, noise, eta)
        got, y = apply(row, x.astype(np.float64), out, noise)
        assert relative_rmse(got, want) <= 1e-5
        assert relative_rmse(y, want_x0) <= 1e-5


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20, 50])
def test_ddim_zero_snr_as_models_use_it(
    beta_schedule: str, set_alpha_to_one: bool, clip_sample: bool, steps: int
) -> None:
    """diffusers exactly as it is: v-prediction, trailing, no eta."""
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": beta_schedule,
        "clip_sample": clip_sample,
        "set_alpha_to_one": set_alpha_to_one,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
    }
    reference = diffusers.DDIMScheduler(**config)
    reference.set_timesteps(steps)
    rng = np.random.default_rng(steps)
    for row, timestep in zip(
        schedulers.make_rows(config, "ddim", steps).rows, reference.timesteps.numpy(), strict=True
    ):
        x, out, noise = arrays(rng, (1, 4, 16, 16))
        want, want_x0 = step(reference, int(timestep), x, out, noise, 0.0)
        got, y = apply(row, x.astype(np.float64), out, noise)
        assert relative_rmse(got, want) <= 1e-5
        assert relative_rmse(y, want_x0) <= 1e-5


def ufogen_step(
    reference: Any, timesteps: np.ndarray, index: int, x: np.ndarray, out: np.ndarray, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """diffusers' predicted sample, noised again to the next timestep by its add_noise."""
    _, x0 = step(reference, int(timesteps[index]), x, out, noise, 0.0)
    if index + 1 == len(timesteps):
        return x0, x0
    following = torch.tensor([int(timesteps[index + 1])])
    return reference.add_noise(torch.from_numpy(x0), torch.from_numpy(noise), following).numpy(), x0


@pytest.mark.parametrize("seed", range(100))
def test_ufogen(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(10_000 + seed)
    config = {**random_config(rng), "timestep_spacing": "trailing"}
    steps = int(rng.choice([1, 2, 4, 8]))
    reference = make_reference(config, 0.0, monkeypatch)
    reference.set_timesteps(steps)
    timesteps = reference.timesteps.numpy()[:steps]
    scheduler = schedulers.UFOGenScheduler.from_config(config)
    np.testing.assert_array_equal(scheduler.timesteps(steps), timesteps)
    for index, row in enumerate(scheduler.rows(steps)):
        x, out, noise = arrays(rng, (1, 4, 16, 16))
        want, want_x0 = ufogen_step(reference, timesteps, index, x, out, noise)
        got, y = apply(row, x.astype(np.float64), out, noise)
        assert relative_rmse(got, want) <= 1e-5
        assert relative_rmse(y, want_x0) <= 1e-5


STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
ZERO_SNR = {
    **STABLE_DIFFUSION,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
COSINE = {"prediction_type": "sample", "beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "linspace"}
GOLDEN_CASES: list[tuple[str, str, dict[str, Any], int, float]] = [
    (
        "ddim-v-zero-snr-trailing",
        "ddim",
        ZERO_SNR,
        8,
        0.0,
    ),
    ("ddim-epsilon-leading", "ddim", {**STABLE_DIFFUSION, "set_alpha_to_one": False, "steps_offset": 1}, 20, 0.0),
    ("ddim-epsilon-defaults", "ddim", {}, 4, 0.0),
    ("ddim-sample-cosine-linspace", "ddim", COSINE, 7, 0.0),
    ("ddim-v-clipped-eta", "ddim", {"prediction_type": "v_prediction", "clip_sample_range": 0.5}, 5, 0.7),
    ("ddim-one-step", "ddim", {**STABLE_DIFFUSION, "timestep_spacing": "trailing"}, 1, 0.0),
    ("ufogen-one-step", "ufogen", {**STABLE_DIFFUSION, "timestep_spacing": "trailing"}, 1, 0.0),
    (
        "ufogen-v-zero-snr",
        "ufogen",
        ZERO_SNR,
        4,
        0.0,
    ),
]


def golden_case(
    name: str, kind: str, config: dict[str, Any], steps: int, eta: float, data: list[np.ndarray]
) -> dict[str, Any]:
    reference = diffusers.DDIMScheduler(**config)
    reference.set_timesteps(steps)
    timesteps = reference.timesteps.numpy()
    x, out, noise = data
    pairs = [
        ufogen_step(reference, timesteps, i, x, out, noise)
        if kind == "ufogen"
        else step(reference, int(t), x, out, noise, eta)
        for i, t in enumerate(timesteps)
    ]
    return {
        "name": name,
        "scheduler": kind,
        "config": config,
        "steps": steps,
        "eta": eta,
        "timesteps": timesteps.tolist(),
        "x_next": [pair[0].tolist() for pair in pairs],
        "x0": [pair[1].tolist() for pair in pairs],
    }


def write_golden(path: Path) -> None:
    x, out, noise = data = arrays(np.random.default_rng(7), (8,))
    document = {
        "written_by": f"diffusers {diffusers.__version__}, PyTorch {torch.__version__}",
        "x": x.tolist(),
        "out": out.tolist(),
        "noise": noise.tolist(),
        "cases": [golden_case(*case, data) for case in GOLDEN_CASES],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    write_golden(Path(__file__).parents[1] / "data" / "schedules.json")
