"""Comparing two bundles: what is equal, what a change in one component moves, and what cannot be compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mdrt
from mdrt import compare, models, prompts
from mdrt.bundle import write_bundle
from mdrt.cli import main
from mdrt.compare import MAX_PSNR, psnr
from mdrt.graph import Graph
from mdrt.stages import Stages
from weights_tools.convert import convert
from weights_tools.new import new

DATA = Path(__file__).parent / "data"
PROMPTS = ["red apple", "tiger on a blue background"]
WEIGHTS = {
    "text_encoder": ("text_encoder/model.safetensors", "text_model.encoder.layers.0.mlp.fc1.weight"),
    "unet": ("unet/diffusion_pytorch_model.safetensors", "mid_block.resnets.0.conv1.depthwise.weight"),
    "vae_decoder": ("vae/diffusion_pytorch_model.safetensors", "decoder.mid_block.resnets.0.conv1.weight"),
}

SMALL = {
    "sample_size": 8,
    "block_out_channels": [24, 24],
    "downsample": [True],
    "layers_per_block": [1, 1],
    "transformer_layers_per_block": [0, 1],
    "self_attention": [False, False],
    "mid_transformer_layers": 1,
    "separable_conv": [False, True],
    "attention_head_dim": 12,
    "norm_num_groups": 4,
    "text_encoder.num_attention_heads": 2,
    "text_encoder.num_hidden_layers": 1,
    "vae.block_out_channels": [8, 8],
    "vae.norm_num_groups": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def bundle(folder):
    convert(DATA / "micro-a", folder / "a.mdrt", steps=[1, 3], guidance_scale=[1, 2])
    return folder / "a.mdrt"


def changed(folder, source, component):
    """A bundle of micro-a with one weight of one component doubled."""
    checkpoint = folder / f"{component}-checkpoint"
    shutil.copytree(DATA / source, checkpoint)
    file, name = WEIGHTS[component]
    tensors = load_file(checkpoint / file)
    key = name if name in tensors else name.removeprefix("text_model.")
    tensors[key] = 2 * tensors[key]
    save_file(tensors, checkpoint / file)
    convert(checkpoint, folder / f"{component}.mdrt", steps=[1, 3], guidance_scale=[1, 2])
    return folder / f"{component}.mdrt"


def test_psnr():
    a = np.array([0, 100, 200, 50], np.uint8)
    b = np.array([0, 100, 200, 52], np.uint8)
    assert psnr(a, b, peak=255) == pytest.approx(10 * np.log10(255**2 / 1))
    assert psnr(a, b) == pytest.approx(20 * np.log10(200))
    assert psnr(a, a) == psnr(np.zeros(3), np.zeros(3)) == MAX_PSNR
    assert psnr(np.full(3, 5.0), np.zeros(3)) == 0


def test_equal_bundles(bundle):
    results = compare.run(bundle, bundle, prompts=PROMPTS, num_inference_steps=3)
    assert (results["num_inference_steps"], results["guidance_scale"]) == (3, 2)
    assert {name: stage["count"] for name, stage in results["stages"].items()} == {
        "text_encoder": 2,
        "unet": 6,
        "vae_decoder": 2,
    }
    assert all(stage["worst"] == MAX_PSNR for stage in results["stages"].values())
    assert [(p["prompt"], p["seed"], p["psnr"]) for p in results["pictures"]] == [
        (PROMPTS[0], 0, MAX_PSNR),
        (PROMPTS[1], 1, MAX_PSNR),
    ]
    assert results["mean"] == results["worst"] == MAX_PSNR


def test_halves(bundle, tmp_path):
    convert(DATA / "micro-a", tmp_path / "half.mdrt", format="fp16", steps=[1, 3], guidance_scale=[1, 2])
    results = compare.run(bundle, tmp_path / "half.mdrt", prompts=PROMPTS)
    assert results["num_inference_steps"] == 1
    for stage in results["stages"].values():
        assert 65 < stage["worst"] <= stage["mean"] < 95
    assert 50 < results["worst"] <= results["mean"] < 75
    assert results["worst"] == min(picture["psnr"] for picture in results["pictures"])


@pytest.mark.parametrize("component", WEIGHTS)
def test_a_change_shows_in_its_own_stage(component, bundle, folder):
    results = compare.run(bundle, changed(folder, "micro-a", component), prompts=PROMPTS, num_inference_steps=3)
    for name, stage in results["stages"].items():
        assert (stage["mean"] < 60) == (name == component), name
        assert (stage["worst"] == MAX_PSNR) == (name != component), name
    assert results["mean"] < 60


def test_pictures_are_those_of_the_pipeline(bundle, folder, tmp_path):
    other = tmp_path / "half.mdrt"
    convert(DATA / "micro-a", other, format="fp16", steps=[1, 3], guidance_scale=[1, 2])
    results = compare.run(bundle, other, prompts=PROMPTS[1:], num_inference_steps=3, seed=9)
    with mdrt.Pipeline(bundle) as a, mdrt.Pipeline(other) as b:
        pictures = [np.asarray(pipe(PROMPTS[1], num_inference_steps=3, seed=9)) for pipe in (a, b)]
    assert results["mean"] == psnr(*pictures, peak=255)


def test_stages_by_hand(bundle, tmp_path):
    """Both bundles get what the sampling of the first one passes through."""
    other = tmp_path / "half.mdrt"
    convert(DATA / "micro-a", other, format="fp16", steps=[1, 3], guidance_scale=[1, 2])
    results = compare.run(bundle, other, prompts=PROMPTS[:1], num_inference_steps=3, seed=2)["stages"]
    first, second = Stages(bundle), Stages(other)
    schedule, guidance = first.schedule(3)
    *latents, last = first.walk(PROMPTS[0], first.noise(2), schedule, guidance, 2)
    context = first.context(["", PROMPTS[0]])
    feeds = {"unet": [first.unet_feeds(x, row[0], context) for x, row in zip(latents, schedule.rows, strict=True)]}
    feeds["vae_decoder"] = [first.decoder_feeds(last)]
    feeds["text_encoder"] = [{"input_ids": first.ids(PROMPTS[:1])}]
    outputs = {"text_encoder": "last_hidden_state", "unet": "out_sample", "vae_decoder": "sample"}
    for component, output in outputs.items():
        values = [
            psnr(*(model.run(component, [output], **given)[output] for model in (first, second)))
            for given in feeds[component]
        ]
        expected = {"mean": sum(values) / len(values), "worst": min(values), "count": len(values)}
        assert results[component] == expected, component


@pytest.mark.parametrize("steps", [1, 3])
def test_walk_ends_where_the_pipeline_does(steps, bundle):
    stages = Stages(bundle)
    schedule, guidance = stages.schedule(steps)
    latents = list(stages.walk(PROMPTS[0], stages.noise(4), schedule, guidance, 4))
    assert len(latents) == steps + 1
    with mdrt.Pipeline(bundle) as pipe:
        expected = pipe(PROMPTS[0], num_inference_steps=steps, seed=4, output_type="latent")
    assert np.array_equal(latents[-1].transpose(0, 3, 1, 2), expected)


@pytest.mark.parametrize(("steps", "count", "mean", "worst"), [(1, 64, 45, 42), (8, 16, 42, 39)])
def test_quality_of_the_builtin_model(steps, count, mean, worst):
    """int8 against the same weights as halves, with the guidance that the bundle stores."""
    chosen = prompts.read(DATA / "prompts.txt")
    assert len(set(chosen)) == 64
    chosen = chosen[:: 64 // count]
    results = compare.run(DATA / "emoji-fp16.mdrt", models.builtin_path(), prompts=chosen, num_inference_steps=steps)
    assert results["mean"] >= mean
    assert results["worst"] >= worst


class TestRefused:
    def test_other_latents(self, bundle, tmp_path):
        convert(DATA / "micro-b", tmp_path / "b.mdrt")
        with pytest.raises(mdrt.InvalidArgumentError, match="cannot be compared: latent_channels is 8 and 4"):
            compare.run(bundle, tmp_path / "b.mdrt")

    def edited(self, tmp_path, file, **changes):
        shutil.copytree(DATA / "micro-a", tmp_path / "checkpoint")
        path = tmp_path / "checkpoint" / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        convert(tmp_path / "checkpoint", tmp_path / "b.mdrt", steps=[1])
        return tmp_path / "b.mdrt"

    def test_other_scheduler(self, bundle, tmp_path):
        other = self.edited(tmp_path, "scheduler/scheduler_config.json", timestep_spacing="leading")
        with pytest.raises(mdrt.InvalidArgumentError, match="scheduler_config is"):
            compare.run(bundle, other)

    def test_other_sampler(self, bundle, tmp_path):
        convert(DATA / "micro-a", tmp_path / "b.mdrt", steps=[2], scheduler=["ufogen"])
        with pytest.raises(mdrt.InvalidArgumentError, match="their schedules for 2 steps differ"):
            compare.run(bundle, tmp_path / "b.mdrt", num_inference_steps=2)

    def test_other_tokenizer(self, bundle, tmp_path):
        shutil.copytree(DATA / "micro-a", tmp_path / "checkpoint")
        path = tmp_path / "checkpoint/tokenizer/vocab.json"
        vocabulary = json.loads(path.read_text())
        a, b = list(vocabulary)[300:302]
        vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
        path.write_text(json.dumps(vocabulary))
        convert(tmp_path / "checkpoint", tmp_path / "b.mdrt", steps=[1])
        word = a.replace("</w>", "")
        with pytest.raises(mdrt.InvalidArgumentError, match="tokenizers read the prompts differently"):
            compare.run(bundle, tmp_path / "b.mdrt", prompts=[word])

    def test_other_context(self, tmp_path):
        for width in (24, 36):
            settings = {"cross_attention_dim": width, "text_encoder.hidden_size": width, **SMALL}
            new(tmp_path / str(width), settings=settings, tokenizer=DATA / "micro-a/tokenizer")
            convert(tmp_path / str(width), tmp_path / f"{width}.mdrt", steps=[1])
        with pytest.raises(mdrt.InvalidArgumentError, match="their text encoders give 24 and 36 channels"):
            compare.run(tmp_path / "24.mdrt", tmp_path / "36.mdrt")

    def test_no_prompt(self, bundle):
        with pytest.raises(mdrt.InvalidArgumentError, match="there is no prompt"):
            compare.run(bundle, bundle, prompts=[])

    def test_missing_file(self, bundle):
        with pytest.raises(mdrt.FileError):
            compare.run(bundle, "missing.mdrt")

    def test_one_component(self, bundle, tmp_path):
        graph = Graph()
        graph.output(graph.add("silu", [graph.input("x", ["batch", 4])], name="y"))
        write_bundle(tmp_path / "b.mdrt", {"part": graph}, {"part": {}})
        with pytest.raises(mdrt.InvalidArgumentError, match="not a text-to-image model; it has part"):
            compare.run(bundle, tmp_path / "b.mdrt")


class TestPromptFiles:
    def test_blank_lines_and_mark(self, tmp_path):
        (tmp_path / "p.txt").write_bytes("\ufeffred apple\r\n\n  \npizza 🍕\n".encode())
        assert prompts.read(tmp_path / "p.txt") == ["red apple", "pizza 🍕"]

    @pytest.mark.parametrize("data", [b"", b"\n \n", b"caf\xe9\n"], ids=repr)
    def test_refused(self, data, tmp_path):
        (tmp_path / "p.txt").write_bytes(data)
        with pytest.raises(mdrt.InvalidArgumentError):
            prompts.read(tmp_path / "p.txt")

    def test_missing(self, tmp_path):
        with pytest.raises(mdrt.FileError, match="cannot read"):
            prompts.read(tmp_path / "p.txt")


class TestCommand:
    def test_json(self, bundle, tmp_path, capsys):
        (tmp_path / "p.txt").write_text("pizza\n")
        arguments = ["--prompts", str(tmp_path / "p.txt"), "--steps", "3", "--seed", "5", "--json"]
        assert main(["compare", str(bundle), str(bundle), *arguments]) == 0
        results = json.loads(capsys.readouterr().out)
        assert results["num_inference_steps"] == 3
        assert results["pictures"] == [{"prompt": "pizza", "seed": 5, "psnr": MAX_PSNR}]

    def test_text(self, bundle, capsys):
        assert main(["compare", str(bundle), str(bundle)]) == 0
        printed = capsys.readouterr().out
        assert "4 prompts, 1 steps, guidance 1" in printed and "vae_decoder" in printed
        assert all(prompt in printed for prompt in compare.PROMPTS)

    def test_bad_input(self, bundle, tmp_path, capsys):
        convert(DATA / "micro-b", tmp_path / "b.mdrt")
        assert main(["compare", str(bundle), str(tmp_path / "b.mdrt")]) == 2
        assert "cannot be compared" in capsys.readouterr().err
