"""The arithmetic of diffusion and of its distillation, against mdrt's schedulers and closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[train]'")

from torch import Tensor  # noqa: E402

from mdrt.errors import InvalidArgumentError  # noqa: E402
from mdrt.schedulers import COLUMNS, make_rows  # noqa: E402
from weights_tools.modules import CLIPTextModel, MobileDiffusionUNet2DConditionModel  # noqa: E402
from weights_tools.new import SCHEDULER  # noqa: E402
from weights_tools.text_encoder import TextEncoderConfig  # noqa: E402
from weights_tools.training import progressive, ufogen  # noqa: E402
from weights_tools.training.base import distances, dropped, random_timesteps  # noqa: E402
from weights_tools.training.diffusion import CLEAN, Diffusion, guided, trailing  # noqa: E402
from weights_tools.training.stage import Context  # noqa: E402
from weights_tools.unet import UNetConfig  # noqa: E402

pytestmark = pytest.mark.train
SHAPE = (5, 3, 4, 4)
UNET = UNetConfig(
    in_channels=3,
    out_channels=3,
    sample_size=4,
    block_out_channels=(8, 8),
    downsample=(True,),
    layers_per_block=(1, 1),
    transformer_layers_per_block=(0, 1),
    self_attention=(False, True),
    mid_transformer_layers=1,
    separable_conv=(False, True),
    attention_head_dim=8,
    cross_attention_dim=8,
    norm_num_groups=4,
)


@pytest.fixture
def latents() -> tuple[Tensor, Tensor]:
    """Clean latents and noise."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def times(*values: int) -> Tensor:
    return torch.tensor(values if len(values) > 1 else values * SHAPE[0])


def test_last_timestep_is_noise_alone(latents: tuple[Tensor, Tensor]) -> None:
    sample, noise = latents
    diffusion = Diffusion()
    assert torch.equal(diffusion.add_noise(sample, noise, times(999)), noise)
    assert torch.equal(diffusion.velocity(sample, noise, times(999)), -sample)
    assert torch.equal(diffusion.add_noise(sample, noise, times(CLEAN)), sample)


def test_velocity_gives_the_sample_back(latents: tuple[Tensor, Tensor]) -> None:
    sample, noise = latents
    diffusion, timestep = Diffusion(), times(0, 124, 500, 749, 999)
    noisy, velocity = diffusion.add_noise(sample, noise, timestep), diffusion.velocity(sample, noise, timestep)
    assert torch.allclose(diffusion.predicted_sample(noisy, velocity, timestep), sample, atol=1e-6)
    following = times(CLEAN, 0, 374, 700, 874)
    expected = diffusion.add_noise(sample, noise, following)
    assert torch.allclose(diffusion.step(noisy, velocity, timestep, following), expected, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 20])
def test_sampling_is_that_of_the_product(latents: tuple[Tensor, Tensor], steps: int) -> None:
    def predict(noisy: Tensor, timestep: Tensor) -> Tensor:
        return torch.tanh(noisy + timestep[:, None, None, None] / 1000)

    drawn = Diffusion().denoise(latents[1], predict, steps)
    x = latents[1].double()
    for row in make_rows(SCHEDULER, "ddim", steps).rows:
        column = dict(zip(COLUMNS, row.tolist(), strict=True))
        output = predict(x, torch.full((len(x),), column["t"]))
        clean = column["p"] * x + column["q"] * output
        x = column["a"] * x + column["b"] * clean + column["e"] * output
    assert torch.allclose(drawn.double(), x, atol=1e-5)


def test_trailing_refuses() -> None:
    with pytest.raises(InvalidArgumentError, match="from 1 to 1000"):
        trailing(0)


def test_guidance_leads_away_from_the_empty_caption(latents: tuple[Tensor, Tensor]) -> None:
    calls = []

    def unet(noisy: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        calls.append(len(noisy))
        return noisy * text.mean((1, 2))[:, None, None, None] + timestep[:, None, None, None]

    text, empty = torch.full((5, 2, 2), 3.0), torch.full((1, 2, 2), 1.0)
    result = guided(unet, latents[0], times(7), text, empty, 2.5)
    # 1 + 2.5 * (3 - 1) = 6 times the latents
    assert torch.allclose(result, 6 * latents[0] + 7, atol=1e-5)
    assert torch.equal(guided(unet, latents[0], times(7), text, empty, 1), unet(latents[0], times(7), text))
    assert calls == [10, 5, 5]


def test_timesteps_and_dropped_captions() -> None:
    random = np.random.default_rng(0)
    timesteps = random_timesteps(random, 40000, "cpu").double()
    assert timesteps.min() >= 0 and timesteps.max() == 999
    # The mean of 1000 u^0.75 is 1000 / 1.75, rounded down; five standard errors.
    assert abs(timesteps.mean() + 0.5 - 1000 / 1.75) < 5 * 274 / math.sqrt(40000)
    ids, empty = torch.ones(40000, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)
    share = (dropped(random, ids, empty, 0.1) == 0).all(1).double().mean()
    assert abs(share - 0.1) < 5 * 0.3 / math.sqrt(40000)


def test_two_steps_of_a_perfect_teacher_lead_to_the_sample(latents: tuple[Tensor, Tensor]) -> None:
    """A teacher that knows the picture leads along a straight path, so the student's target is the picture."""
    sample, noise = latents
    diffusion = Diffusion()
    timestep, middle, following = (
        times(999, 999, 874, 500, 124),
        times(499, 937, 749, 250, 62),
        times(-1, 874, 500, 0, -1),
    )
    noisy = diffusion.add_noise(sample, noise, timestep)
    teacher = lambda x, t: diffusion.velocity(sample, noise, t)  # noqa: E731
    target = progressive.two_step_target(diffusion, teacher, noisy, timestep, middle, following)
    assert torch.allclose(target, sample, atol=1e-4)


def test_student_lands_where_two_steps_do(latents: tuple[Tensor, Tensor]) -> None:
    diffusion = Diffusion()
    timestep, middle, following = (
        times(999, 874, 749, 499, 249),
        times(937, 812, 624, 374, 124),
        times(874, 749, 499, 249, -1),
    )
    noisy = latents[1]
    teacher = lambda x, t: torch.sin(2 * x) + t[:, None, None, None] / 700  # noqa: E731
    target = progressive.two_step_target(diffusion, teacher, noisy, timestep, middle, following)
    # The v with which the student predicts the target; at 999, where it is the negative target, as well.
    velocity = (diffusion.signal(timestep) * noisy - target) / diffusion.noise(timestep)
    landed = diffusion.step(noisy, velocity, timestep, following)
    halfway = diffusion.step(noisy, teacher(noisy, timestep), timestep, middle)
    expected = diffusion.step(halfway, teacher(halfway, middle), middle, following)
    assert torch.allclose(landed, expected, atol=1e-4)


def test_roots_are_least_at_one_of_two_pictures_and_squares_between_them() -> None:
    likely, other = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(2))
    true = torch.stack([likely] * 6 + [other] * 4)
    shares = [index / 20 for index in range(21)]
    for loss, best in (("square", 0.4), ("root", 0.0)):
        predicted = [torch.lerp(likely, other, share).expand_as(true) for share in shares]
        means = [float(distances(prediction, true, loss).mean()) for prediction in predicted]
        assert shares[int(np.argmin(means))] == best
    assert distances(true, true, "square").tolist() == [0.0] * 10


def test_loss_in_clean_latents_weighs_by_snr() -> None:
    diffusion = Diffusion()
    predicted, target = torch.full((2, 1, 1, 1), 3.0), torch.zeros(2, 1, 1, 1)
    snr = diffusion.signal_to_noise(torch.tensor([50]))
    assert snr > 1
    assert progressive.sample_loss(diffusion, predicted, target, torch.tensor([999, 50])) == pytest.approx(
        float(9 * (1 + snr.item()) / 2)
    )


def test_random_steps_of_a_round() -> None:
    found = progressive.random_steps(np.random.default_rng(0), 200, 4)
    steps = {tuple(step) for step in found.T.tolist()}
    assert steps == {(999, 874, 749), (749, 624, 499), (499, 374, 249), (249, 124, CLEAN)}


def test_rounds_halve_and_learn_anew(tmp_path: Path) -> None:
    settings = {"samples": 88, "batch_size": 2, "learning_rate": 1.0, "decay": "linear"}
    config = Context("progressive", settings, tmp_path).config(progressive.ProgressiveTraining)
    assert [config.round_at(step) for step in (0, 10, 11, 22, 33, 43)] == [0, 0, 1, 2, 3, 3]
    rates = [config.learning_rate_at(step) for step in range(44)]
    assert rates[0] == rates[11] == rates[33] == 1 and rates[10] == rates[43] == pytest.approx(1 / 11)
    with pytest.raises(InvalidArgumentError, match="half of the one before"):
        Context("progressive", settings | {"rounds": [8, 3]}, tmp_path).config(progressive.ProgressiveTraining)


def test_discriminator_judges_cells_and_starts_undecided() -> None:
    torch.manual_seed(0)
    unet = MobileDiffusionUNet2DConditionModel(UNET)
    discriminator = ufogen.make_discriminator(unet)
    inputs = torch.randn(2, 3, 4, 4), torch.tensor([10, 900]), torch.randn(2, 6, 8)
    logits = discriminator(*inputs)
    assert logits.shape == (2, 1, 4, 4) and not logits.any()
    assert torch.equal(discriminator.conv_in.weight, unet.conv_in.weight)
    assert discriminator.conv_in.weight.data_ptr() != unet.conv_in.weight.data_ptr()


def test_levels_of_the_discriminator_lie_below_the_generators() -> None:
    timestep = torch.tensor([999] * 1000 + [124] * 1000)
    levels = ufogen.random_levels(np.random.default_rng(0), timestep)
    assert levels.min() >= 0 and (levels <= timestep).all()
    # A logistic normal has its median in the middle, and 2.3 % below 1 / (1 + e^2).
    assert levels[:1000].median() == pytest.approx(499, abs=60) and levels[:1000].min() < 120


def test_generator_begins_with_noise_or_where_its_own_steps_lead() -> None:
    diffusion, noise, sample = Diffusion(), torch.randn(5, 2, 3, 3), torch.randn(5, 2, 3, 3)

    def perfect(noisy: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        assert len(noisy) == len(timestep) == len(text) == 2
        return diffusion.velocity(text, noise[1::2], timestep)

    seen = set()
    for seed in range(60):
        noisy, timestep = ufogen.beginnings(np.random.default_rng(seed), diffusion, perfect, noise, sample, 8)
        assert torch.equal(noisy[::2], noise[::2]) and timestep[::2].tolist() == [999] * 3
        assert timestep[1] == timestep[3]
        torch.testing.assert_close(noisy, diffusion.add_noise(sample, noise, timestep))
        seen.add(int(timestep[1]))
    assert seen == set(trailing(8))


def test_both_terms_pull_equally() -> None:
    output = torch.tensor([1.0, 2.0], requires_grad=True)
    total = ufogen.balanced_gradient(output[0] * 3, output[1] * 1e-3, output, 2.0)
    assert torch.allclose(total, torch.tensor([3.0, 6.0]))


def test_attention_is_the_same_with_and_without_gradients() -> None:
    """In training on a CPU it is written out."""
    torch.manual_seed(0)
    unet = MobileDiffusionUNet2DConditionModel(UNET)
    text_encoder = CLIPTextModel(
        TextEncoderConfig(
            vocab_size=50,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=6,
        )
    )
    ids = torch.randint(0, 50, (2, 6))
    inputs = torch.randn(2, 3, 4, 4), torch.tensor([10, 900])
    trained = unet(*inputs, text_encoder(ids))
    with torch.no_grad():
        drawn = unet(*inputs, text_encoder(ids))
    assert torch.allclose(trained, drawn, atol=1e-5)
