"""The autoencoder: as diffusers computes it, trained, stopped and resumed; latents from it; all needs PyTorch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mdrt.errors import FileError, InvalidArgumentError
from weights_tools.checkpoint import Checkpoint
from weights_tools.components import vae_config
from weights_tools.training import latents, vae
from weights_tools.training.emoji import EmojiSet
from weights_tools.training.light import Part, write_pipeline
from weights_tools.training.pool import KINDS, read_pool
from weights_tools.training.stage import Context
from weights_tools.vae import VaeConfig

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install '.[test,train]'")
pytestmark = pytest.mark.train

MICRO = Path(__file__).parent.parent / "data" / "micro-a" / "tokenizer"
SETTINGS = {
    "samples": 48,
    "batch_size": 8,
    "learning_rate": 2e-3,
    "report_samples": 16,
    "picture": 32,
    "crop": 16,
    "whole": 0.5,
    "block_out_channels": [8, 8, 16, 16],
    "anchor_share": 0.5,
}


def weights(folder: Path) -> dict[str, Any]:
    files = Checkpoint(folder).weights("vae")
    return {name: files.read(name) for name in files}


def train(folder: Path, **changes: Any) -> None:
    limits = {name: changes.pop(name) for name in ("minutes", "resume") if name in changes}
    vae.run(Context("vae", SETTINGS | changes, folder, say=lambda _: None, **limits))


def test_stopped_and_resumed_equals_unbroken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after each update, on crops and on whole pictures."""
    train(folder)
    unbroken = torch.load(folder / "vae" / "full.pt")
    shutil.rmtree(folder / "vae")
    for _ in range(6):
        # After the first update the clock says that the minutes are over.
        clock = iter([0.0, 0.0, 1.0, *[100.0] * 9])
        monkeypatch.setattr("weights_tools.training.stage.time.monotonic", lambda clock=clock: next(clock))
        train(folder, minutes=1.0, resume=True)
    resumed = torch.load(folder / "vae" / "full.pt")
    assert resumed["step"] == unbroken["step"] == 6
    for part in ("modules", "averages"):
        for name, value in unbroken[part]["vae"].items():
            assert torch.equal(value, resumed[part]["vae"][name]), (part, name)
    for name in ("muon", "adamw"):
        for index, entry in unbroken["optimizers"][name]["state"].items():
            for key, value in entry.items():
                assert torch.equal(torch.as_tensor(value), resumed["optimizers"][name]["state"][index][key])
    steps = [line.split(",")[0] for line in (folder / "vae" / "log.csv").read_text().splitlines()]
    assert steps == ["step", "2", "4", "6"]


def test_training_learns(folder: Path) -> None:
    train(folder, samples=800, report_samples=80, concepts=["tiger", "eye"])
    header, first, *_, last = (line.split(",") for line in (folder / "vae" / "log.csv").read_text().splitlines())
    psnr = header.index("psnr")
    assert float(last[psnr]) > float(first[psnr]) + 3


def test_started_training_is_not_overwritten(folder: Path) -> None:
    train(folder)
    with pytest.raises(InvalidArgumentError, match="--resume"):
        train(folder)
    with pytest.raises(FileError, match="no checkpoint of this stage"):
        train(folder, resume=True, block_out_channels=[8, 8, 16, 32])


def test_light_checkpoint(folder: Path) -> None:
    """It is what convert reads, in float16, and holds the averages."""
    train(folder)
    light = Checkpoint(folder / "vae" / "light")
    assert vae_config(light).block_out_channels == (8, 8, 16, 16)
    averages = torch.load(folder / "vae" / "full.pt")["averages"]["vae"]
    for name, value in weights(folder / "vae" / "light").items():
        assert np.array_equal(value, averages[name].half().float().numpy())


def test_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file above the limit but of one large tensor; a second call replaces all of the first."""
    monkeypatch.setattr("weights_tools.training.light.SHARD_BYTES", 1000)
    tensors = {name: torch.full((size,), float(size)) for name, size in [("a", 400), ("b", 300), ("c", 10), ("d", 900)]}
    config = {"_class_name": "AutoencoderKL"}
    write_pipeline(tmp_path / "light", {"vae": Part(config, {"old": torch.zeros(3)})})
    write_pipeline(tmp_path / "light", {"vae": Part(config, tensors)})
    index = json.loads((tmp_path / "light/vae/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == 3 and index["weight_map"]["b"] == index["weight_map"]["c"]
    sizes = [path.stat().st_size for path in sorted((tmp_path / "light/vae").glob("*.safetensors"))]
    assert max(sizes[:2]) <= 1000 < sizes[2]
    assert {name: value.tolist() for name, value in weights(tmp_path / "light").items()} == {
        name: value.tolist() for name, value in tensors.items()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["light"]


def test_start_from_a_narrower_one(folder: Path) -> None:
    """The first batch is as true as the last ones of what it starts from."""
    train(folder, samples=800, report_samples=80)
    (folder / "vae").rename(folder / "start")
    train(folder, init="start/light", block_out_channels=[8, 8, 24, 24], samples=8, report_samples=8, whole=1.0)
    logs = ((folder / name / "log.csv").read_text().splitlines() for name in ("start", "vae"))
    before, after = (dict(zip(log[0].split(","), log[-1].split(","), strict=True)) for log in logs)
    assert float(after["psnr"]) == pytest.approx(float(before["psnr"]), abs=1)


def test_frozen_encoder(folder: Path) -> None:
    train(folder)
    (folder / "vae" / "light").rename(folder / "start")
    (folder / "vae" / "full.pt").unlink()
    train(folder, init="start", freeze_encoder=True)
    before, after = weights(folder / "start"), weights(folder / "vae" / "light")
    for name, value in before.items():
        is_kept = not name.startswith(("decoder.", "post_quant_conv."))
        assert np.array_equal(value, after[name]) == is_kept, name


def test_start_from_another_structure(folder: Path) -> None:
    train(folder)
    (folder / "vae").rename(folder / "start")
    with pytest.raises(InvalidArgumentError, match="the settings are for"):
        train(folder, init="start/light", norm_num_groups=2)


def test_widened_by_whole_numbers_it_draws_the_same() -> None:
    from weights_tools.modules.vae import AutoencoderKL
    from weights_tools.training.widen import widen

    torch.manual_seed(0)
    config = VaeConfig(block_out_channels=(8, 16), norm_num_groups=4, mid_block_add_attention=False)
    narrow = AutoencoderKL(config).double()
    wide = widen(narrow, (16, 48), noise=0.0).double()
    sample = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(wide.encode(sample), narrow.encode(sample), atol=1e-6)
        assert torch.allclose(wide.decode(wide.encode(sample)), narrow.decode(narrow.encode(sample)), atol=1e-6)
    for wrong in [(8, 8), (16,), (16, 16), (4, 16)]:
        with pytest.raises(InvalidArgumentError, match="cannot be widened"):
            widen(narrow, wrong)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_muon_directions_are_orthogonal(shape: tuple[int, int]) -> None:
    from weights_tools.training.muon import orthogonal

    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.6 and values.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(orthogonal(matrix).flatten(), (left @ right).flatten(), 0) > 0.97


def test_latents(folder: Path, emoji: EmojiSet) -> None:
    """Unit variance, and each row calls a picture that its caption means."""
    train(folder)
    (folder / "tokenizer").symlink_to(MICRO)
    settings = {"picture": 32, "beside": 40, "above": 10, "larger": 10, "counts": 10, "batch_size": 7}
    latents.run(Context("latents", settings, folder, say=lambda _: None))
    pool = read_pool(folder / "latents" / "latents.npz")
    assert pool.latents.shape[1:] == (8, 4, 4)
    assert pool.latents.astype(np.float32).std() == pytest.approx(1, abs=2e-3)
    assert set(pool.kind) == set(range(len(KINDS) - 1))
    keyword = pool.kind == KINDS.index("keyword")
    assert set(pool.picture[keyword]) == {0, 1, 2, 3, 4}
    assert len(np.unique(pool.ids[~keyword], axis=0)) == (~keyword).sum()  # a caption has one picture
    assert vae_config(Checkpoint(folder / "latents" / "light")).scaling_factor != 1.0
    assert latents.read_concepts(folder) == emoji.names


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    images = tmp_path / "mine"
    images.mkdir()
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        Image.new("RGB", (40, 40), colour).save(images / name)
    lines = ['{"file_name": "red.png", "text": "one"}', '{"file_name": "blue.png", "text": "two"}']
    (images / "metadata.jsonl").write_text("\n".join(lines))
    (tmp_path / "tokenizer").symlink_to(MICRO)
    train(tmp_path, images="mine")
    latents.run(Context("latents", {"picture": 32, "images": "mine"}, tmp_path, say=lambda _: None))
    pool = read_pool(tmp_path / "latents" / "latents.npz")
    assert len(pool.latents) == 2 and [KINDS[kind] for kind in pool.kind] == ["image", "image"]


@pytest.mark.oracle
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("attention", [False, True])
def test_as_diffusers(attention: bool, layers: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="the oracle needs diffusers")
    from weights_tools.modules.vae import AutoencoderKL

    config = VaeConfig(
        block_out_channels=(8, 16, 24),
        layers_per_block=layers,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=attention,
    )
    torch.manual_seed(layers)
    document = {key: value for key, value in vae.vae_json(config, 32, 1.0).items() if not key.startswith("_")}
    theirs = diffusers.AutoencoderKL(**document).double().eval()
    ours = AutoencoderKL(config).double().eval()
    ours.load_state_dict(theirs.state_dict())
    sample = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    with torch.no_grad():
        latent = theirs.encode(sample).latent_dist.mean
        assert torch.allclose(ours.encode(sample), latent, atol=1e-9)
        assert torch.allclose(ours.decode(latent), theirs.decode(latent).sample, atol=1e-9)
