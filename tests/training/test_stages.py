"""The stages on latents, one after another on a small pool: each resumes exactly and leaves a usable pipeline."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[test,train]'")

from mdrt.errors import InvalidArgumentError  # noqa: E402
from weights_tools.checkpoint import Checkpoint  # noqa: E402
from weights_tools.components import load_networks  # noqa: E402
from weights_tools.modules import AutoencoderKL, load_decoder, load_text_encoder, load_unet  # noqa: E402
from weights_tools.training import base, guidance, networks, progressive, ufogen, workers  # noqa: E402
from weights_tools.training.diffusion import Diffusion  # noqa: E402
from weights_tools.training.drawing import TorchDrawer  # noqa: E402
from weights_tools.training.light import Part, write_pipeline  # noqa: E402
from weights_tools.training.muon import muon_and_adamw  # noqa: E402
from weights_tools.training.pool import FILE_NAME, KINDS, Pool, directions_of, read_pool  # noqa: E402
from weights_tools.training.stage import Context  # noqa: E402
from weights_tools.training.stages import run_stage  # noqa: E402
from weights_tools.training.tokenizer import Tokenizer  # noqa: E402
from weights_tools.training.vae import vae_json  # noqa: E402
from weights_tools.vae import VaeConfig  # noqa: E402

pytestmark = pytest.mark.train
CONFIGS = Path(networks.__file__).parent / "configs"
MICRO = Path(__file__).parent.parent / "data" / "micro-a" / "tokenizer"
VAE = VaeConfig(
    block_out_channels=(4, 4), latent_channels=3, norm_num_groups=2, mid_block_add_attention=False, scaling_factor=0.8
)
LOOP: dict[str, Any] = {"samples": 48, "batch_size": 8, "learning_rate": 1e-3, "report_samples": 16}
NETWORK: dict[str, Any] = {
    "block_out_channels": [8, 8],
    "downsample": [True],
    "layers_per_block": [1, 1],
    "transformer_layers_per_block": [0, 1],
    "self_attention": [False, True],
    "separable_conv": [False, True],
    "mid_transformer_layers": 1,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
# Stage -> module, settings, in the order of use.
STAGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "base": (base, LOOP | NETWORK),
    "relu": (base, LOOP | NETWORK | {"init": "base/light", "attention_fn": "relu"}),
    "guidance": (guidance, LOOP),
    "progressive": (progressive, LOOP | {"rounds": [4, 2, 1]}),
    "ufogen": (ufogen, LOOP | {"adversarial_after": 16}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that has gone through all stages without a break."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(MICRO, folder / "tokenizer")
    torch.manual_seed(0)
    vae = Part(vae_json(VAE, 8, VAE.scaling_factor), AutoencoderKL(VAE).state_dict())
    write_pipeline(folder / "latents" / "light", {"vae": vae})
    random = np.random.default_rng(0)
    tokenizer = Tokenizer(folder / "tokenizer")
    ids = tokenizer.encode([f"emoji {index}" for index in range(30)]).astype(np.uint16)
    kind = np.array([KINDS.index(("single", "colour", "keyword")[index % 3]) for index in range(30)], np.uint8)
    latents = random.standard_normal((10, 3, 4, 4)).astype(np.float16)
    picture, weight = np.arange(30, dtype=np.int32) % 10, np.ones(30, np.float32)
    Pool(latents, picture, kind, ids, weight).save(folder / "latents" / FILE_NAME)
    for stage in STAGES:
        run(folder, stage)
    return folder


def run(folder: Path, stage: str, **limits: Any) -> None:
    module, settings = STAGES[stage]
    module.run(Context(stage, settings, folder, say=lambda _: None, **limits))


@contextmanager
def put_aside(folder: Path) -> Iterator[None]:
    """Lets a stage begin anew; afterwards what it left there gives way to what was there."""
    aside = folder.with_name("aside")
    shutil.move(folder, aside)
    try:
        yield
    finally:
        shutil.rmtree(folder)
        shutil.move(aside, folder)


@pytest.mark.parametrize("has_amx", [True, False])
def test_processors_with_amx_multiply_in_bf16(monkeypatch: pytest.MonkeyPatch, has_amx: bool) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True} | ({"amx_bf16": True} if has_amx else {}))
    one = torch.ones(2, 2)
    expected = torch.bfloat16 if has_amx else torch.float32
    with networks.autocast("cpu"):
        assert (one @ one).dtype == expected
    with networks.autocast("cpu", False):
        assert (one @ one).dtype == torch.float32
    predict = base.recorded(lambda *state: state[0] @ state[0], None, base.BaseTraining(**LOOP), "cpu")  # type: ignore[arg-type]
    assert predict(one).dtype == expected


def test_noise_chooses_among_the_pictures_of_one_caption(trained: Path) -> None:
    """Three pictures of one caption, each drawn with the noise whose means point to it; others as they are called."""
    path = trained / "latents" / FILE_NAME
    pool = read_pool(path)
    latents = np.random.default_rng(1).standard_normal((4, 3, 4, 4)).astype(np.float16)
    kind = np.array([KINDS.index(name) for name in ("keyword", "keyword", "keyword", "single")], np.uint8)
    ids = np.array([[7], [7], [7], [8]], np.uint16)
    try:
        Pool(latents, np.arange(4, dtype=np.int32), kind, ids, np.ones(4, np.float32)).save(path)
        batches = base.Batches(Context("base", {}, trained), base.DiffusionTraining(**LOOP))
    finally:
        pool.save(path)
    drawn, noise, found = batches.draw(np.random.default_rng(0), 6000, {"keyword": 3, "single": 1})
    members = torch.from_numpy(latents).float()
    directions = torch.from_numpy(directions_of(latents[:3].mean((2, 3), dtype=np.float32)))
    nearest = (noise.mean((2, 3)) @ directions.T).argmax(1)
    assert torch.equal(drawn, members[torch.where(found[:, 0] == 7, nearest, 3)])
    assert torch.bincount(nearest).min() > 1800  # of 2000: each as often as any other
    assert drawn.dtype == noise.dtype == torch.float32 and abs(float(noise.std()) - 1) < 0.01


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_and_resumed_equals_unbroken(trained: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after each update; in between the round of `progressive` changes and the discriminator pauses."""
    unbroken = torch.load(trained / stage / "full.pt")
    with put_aside(trained / stage):
        for _ in range(6):
            clock = iter([0.0, *[100.0] * 9])
            monkeypatch.setattr("weights_tools.training.stage.time.monotonic", lambda clock=clock: next(clock))
            run(trained, stage, minutes=1.0, resume=True)
        resumed = torch.load(trained / stage / "full.pt")
    assert resumed["step"] == unbroken["step"] == 6
    for part in ("modules", "averages", "optimizers"):
        assert equal(unbroken[part], resumed[part]), part


@pytest.mark.parametrize("stage", STAGES)
def test_light_checkpoint_is_a_pipeline_of_the_averages(trained: Path, stage: str) -> None:
    light = trained / stage / "light"
    found = load_networks(Checkpoint(light))
    assert found.unet.attention_fn == ("relu" if stage == "relu" else "softmax")
    full = torch.load(trained / stage / "full.pt")["averages"]
    average = {key.removeprefix("unet."): value for values in full.values() for key, value in values.items()}
    for name, value in load_unet(light).state_dict().items():
        assert torch.equal(value, average[name].half().float()), name
    before, after = load_text_encoder(trained / "base" / "light"), load_text_encoder(light)
    is_same = all(map(torch.equal, before.parameters(), after.parameters()))
    assert is_same == (stage != "relu")
    assert not hasattr(load_decoder(light), "encoder")


def test_two_processes_resume_exactly(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = STAGES["base"][1]
    found = []
    for stops in ((), (1.0,)):
        with put_aside(trained / "base"):
            for minutes in (*stops, None):
                clock = itertools.chain([0.0], itertools.repeat(100.0))
                with monkeypatch.context() as patch:
                    if minutes:
                        patch.setattr("weights_tools.training.stage.time.monotonic", lambda clock=clock: next(clock))
                    context = Context("base", settings, trained, minutes, resume=True, say=lambda _: None)
                    with workers.together(2, context):
                        run_stage(context)
            found.append(torch.load(trained / "base" / "full.pt"))
    assert found[0]["step"] == found[1]["step"] == 6
    assert equal(found[0]["modules"], found[1]["modules"])
    assert equal(found[0]["optimizers"], found[1]["optimizers"])


def test_processes_average_gradients_and_share_directions(trained: Path) -> None:
    """After one update, in float32, two processes have the weights of one process with the mean of their gradients."""
    context = Context("base", STAGES["base"][1] | {"samples": 8, "bf16": False}, trained, say=lambda _: None)
    with put_aside(trained / "base"):
        with workers.together(2, context):
            run_stage(context)
        together = torch.load(trained / "base" / "full.pt")["modules"]["model"]
    expected = _mean_update(context, processes=2)
    for name, value in expected.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6, msg=name)


def _mean_update(context: Context, processes: int) -> dict[str, Any]:
    """The weights after the first update with gradients of all processes, computed one after another."""
    config = context.config(base.BaseTraining)
    batches = base.Batches(context, config)
    torch.manual_seed(config.seed)
    model = config.networks(Tokenizer(context.folder / "tokenizer"), batches.pool.latents.shape)
    diffusion, empty = Diffusion(), networks.empty_ids(context.folder)
    optimizers = muon_and_adamw(model, config).values()
    for rank in range(processes):
        torch.manual_seed(config.seed * 1_000_003 * processes + rank)
        random = np.random.default_rng([config.seed, 0, rank])
        sample, noise, ids = batches.draw(random, config.batch_size // processes)
        ids = base.dropped(random, ids, empty, config.caption_dropout)
        timestep = base.random_timesteps(random, len(ids), "cpu", config.first_share)
        velocity = model(diffusion.add_noise(sample, noise, timestep), timestep, ids)
        loss = (velocity - diffusion.velocity(sample, noise, timestep)).square().mean()
        (loss / processes).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate_at(0)
        optimizer.step()
    return model.state_dict()


def test_what_processes_cannot_share(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="evaluate takes one process"), workers.together(
        2, Context("evaluate", {}, trained)
    ):
        pass
    for part in ("tokenizer", "latents"):
        shutil.copytree(trained / part, tmp_path / part)
    uneven = Context("base", STAGES["base"][1] | {"batch_size": 9}, tmp_path)
    with pytest.raises(InvalidArgumentError, match="cannot share a batch of 9 equally"), workers.together(2, uneven):
        run_stage(uneven)
    with (
        pytest.raises(InvalidArgumentError, match="0 processes cannot learn on cpu"),
        workers.together(0, Context("base", {}, trained)),
    ):
        pass
    with (
        pytest.raises(InvalidArgumentError, match="more than one needs the cpu"),
        workers.together(2, Context("base", {}, trained, device="cuda")),
    ):
        pass


def test_stages_change_what_they_start_from(trained: Path) -> None:
    chain = ("base", "guidance", "progressive", "ufogen")
    weights = [load_unet(trained / stage / "light").conv_in.weight for stage in chain]
    assert all(not torch.equal(left, right) for left, right in itertools.pairwise(weights))


def test_each_round_begins_anew(trained: Path) -> None:
    """The last of three rounds has two of six updates; its teacher is not what it teaches."""
    full = torch.load(trained / "progressive" / "full.pt")
    assert {int(entry["step"]) for entry in full["optimizers"]["unet"]["state"].values()} == {2}
    start = load_unet(trained / "guidance" / "light").conv_in.weight
    taught, teacher = (full["modules"][name]["conv_in.weight"] for name in ("unet", "teacher"))
    assert not torch.equal(teacher, taught) and not torch.equal(teacher, start)


def test_discriminator_learns_before_it_is_heard(trained: Path) -> None:
    with open(trained / "ufogen" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["adversarial"]) for row in rows] == [False, True, True]
    assert all(row["discriminator"] and row["reconstruction"] for row in rows)


def test_drawing_repeats_and_follows_prompt_and_noise(trained: Path) -> None:
    drawer = TorchDrawer(trained / "base" / "light")
    noise = np.random.default_rng(0).standard_normal((3, *drawer.shape), np.float32)
    prompts = ["emoji 1", "emoji 2", "emoji 1"]
    for steps, guidance_scale in ((1, 1.0), (4, 2.0)):
        pictures = drawer.draw(prompts, noise, steps, guidance_scale)
        assert pictures.shape == (3, 8, 8, 3) and pictures.dtype == np.uint8
        assert np.array_equal(pictures, drawer.draw(prompts, noise, steps, guidance_scale))
        assert not np.array_equal(pictures[0], pictures[2])
    assert np.array_equal(drawer.draw(prompts[:1], noise[:1], 4, 2.0)[0], pictures[0])


def test_start_takes_what_fits(trained: Path) -> None:
    light = trained / "base" / "light"
    config = Context("base", LOOP | NETWORK, trained).config(base.BaseTraining)
    tokenizer = Tokenizer(trained / "tokenizer")
    torch.manual_seed(5)
    model = config.networks(tokenizer, (1, 3, 4, 4))
    fresh = model.unet.conv_out.weight.clone()
    networks.start_from(model, light, trained / "tokenizer", ("conv_out",))
    assert torch.equal(model.unet.conv_out.weight, fresh)
    assert torch.equal(model.unet.conv_in.weight, load_unet(light).conv_in.weight)
    assert torch.equal(
        model.text_encoder.embeddings.token_embedding.weight,
        load_text_encoder(light).embeddings.token_embedding.weight,
    )
    wider = config.networks(tokenizer, (1, 5, 4, 4))
    count = networks.start_from(wider, light, trained / "tokenizer")
    # All but the layers from and to the latents: conv_in's weight, conv_out's weight and bias.
    assert count == len(list(wider.parameters())) - 3


def test_words_keep_their_embeddings_in_another_vocabulary(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "tokenizer", tmp_path / "tokenizer")
    ids = json.loads((tmp_path / "tokenizer" / "vocab.json").read_text())
    moved = {token: (number + 7) % len(ids) for token, number in ids.items()}
    (tmp_path / "tokenizer" / "vocab.json").write_text(json.dumps(moved))
    config = Context("base", LOOP | NETWORK, trained).config(base.BaseTraining)
    model = config.networks(Tokenizer(tmp_path / "tokenizer"), (1, 3, 4, 4))
    networks.start_from(model, trained / "base" / "light", tmp_path / "tokenizer")
    table = model.text_encoder.embeddings.token_embedding.weight
    old = load_text_encoder(trained / "base" / "light").embeddings.token_embedding.weight
    assert torch.equal(table, old.roll(7, 0))


@pytest.mark.parametrize(
    "stage, cls",
    [
        ("base", base.BaseTraining),
        ("relu", base.BaseTraining),
        ("guidance", guidance.GuidanceTraining),
        ("progressive", progressive.ProgressiveTraining),
        ("ufogen", ufogen.UfogenTraining),
    ],
)
def test_committed_configurations(stage: str, cls: type, tmp_path: Path) -> None:
    files = list(CONFIGS.glob(f"*-{stage}.json"))
    assert {file.stem.split("-")[0] for file in files} == {"tiny", "emoji", "accelerator"}
    for file in files:
        config = Context(stage, json.loads(file.read_text()), tmp_path).config(cls)
        if isinstance(config, base.BaseTraining):
            config.networks(Tokenizer(MICRO), (1, 8, 16, 16))
