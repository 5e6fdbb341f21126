"""From checkpoints to bundles: what is accepted, what it becomes, and that everything else is refused in a sentence."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mdrt
from mdrt import _core
from mdrt.graph import Graph
from weights_tools.checkpoint import TensorFiles
from weights_tools.convert import convert
from weights_tools.new import new
from weights_tools.vocabulary import read_vocabulary

DATA = Path(__file__).parent / "data"
UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "micro-a.mdrt"
    convert(DATA / "micro-a", path, with_encoder=True)
    return path


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The bundle of micro-b with one schedule."""
    path = tmp_path_factory.mktemp("expected") / "b.mdrt"
    convert(DATA / "micro-b", path, with_encoder=True, steps=[2])
    return path


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of micro-b that a test may spoil: separate K/V, attention in the autoencoder."""
    shutil.copytree(DATA / "micro-b", tmp_path / "checkpoint", ignore=shutil.ignore_patterns("golden.npz"))
    return tmp_path / "checkpoint"


def edit_json(path, **changes):
    document = json.loads(path.read_text())
    document.update({key: value for key, value in changes.items() if value is not ...})
    for key in [key for key, value in changes.items() if value is ...]:
        del document[key]
    path.write_text(json.dumps(document))


def edit_weights(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def stored(path):
    """Tensors of a bundle by name, checksums left aside."""
    model = _core.Model(str(path))
    model.verify()
    return {name: np.array(array) for name, _, _, array in model.tensors() if name != "header_crc32c"}


def assert_same_tensors(path, other):
    ours, theirs = stored(path), stored(other)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.tobytes() == theirs[name].tobytes(), name


class TestBundle:
    def test_document(self, bundle):
        document = json.loads(_core.Model(str(bundle)).metadata())
        assert document["format"] == [1, 0]
        assert list(document["components"]) == ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
        pipeline = document["pipeline"]
        assert (pipeline["width"], pipeline["height"], pipeline["vae_scale_factor"]) == (128, 128, 8)
        assert (pipeline["latent_channels"], pipeline["scaling_factor"], pipeline["shift_factor"]) == (8, 0.7, 0)
        assert pipeline["noise"] == "philox"
        assert pipeline["scheduler_config"]["prediction_type"] == "v_prediction"
        assert document["tokenizer"]["vocab_size"] == 2048
        assert document["tokenizer"]["model_max_length"] == 24
        assert document["provenance"]["source"] == "micro-a"

    def test_weights_survive_packing(self, bundle):
        graph = Graph.load(bundle, "unet")
        tensors, source = stored(bundle), load_file(DATA / "micro-a" / UNET)
        assert source.keys() == graph.weights.keys()
        for name, weight in graph.weights.items():
            array = _core.unpack(weight.kind, "fp32", tensors[f"unet/{name}"], weight.shape)
            assert np.array_equal(array, source[name].reshape(weight.shape)), name

    def test_fp16_rounds_panels_and_tables_only(self, tmp_path):
        convert(DATA / "micro-a", tmp_path / "half.mdrt", format="fp16")
        tensors = stored(tmp_path / "half.mdrt")
        assert "vae_encoder/encoder.conv_in.weight" not in tensors
        kinds = {"panel": np.float16, "table": np.float16, "vector": np.float32, "depthwise": np.float32}
        for component in ("text_encoder", "unet", "vae_decoder"):
            for name, weight in Graph.load(tmp_path / "half.mdrt", component).weights.items():
                assert tensors[f"{component}/{name}"].dtype == kinds[weight.kind], name
        source = load_file(DATA / "micro-a" / UNET)["conv_in.weight"]
        panel = _core.unpack("panel", "fp16", tensors["unet/conv_in.weight"], source.shape)
        assert np.array_equal(panel, source.astype(np.float16).astype(np.float32))

    @pytest.mark.parametrize("model", ["micro-a", "micro-b"])
    def test_trajectories(self, model, tmp_path):
        """One step without guidance and eight with, from prompt to picture, against diffusers."""
        golden = np.load(DATA / model / "golden.npz")
        convert(DATA / model, tmp_path / "b.mdrt", steps=[8, 1], guidance_scale=[3, 1])
        with mdrt.Pipeline(tmp_path / "b.mdrt") as pipe:
            for steps in (1, 8):
                prompt, noise = str(golden["prompts"][0]), golden[f"ddim{steps}_noise"]
                latents = pipe(prompt, latents=noise, num_inference_steps=steps, output_type="latent")
                expected = golden[f"ddim{steps}_latent"].astype(np.float64)
                difference = np.asarray(latents).reshape(expected.shape) - expected
                assert np.sqrt(np.mean(difference**2) / np.mean(expected**2)) <= (1e-4 if steps == 8 else 1e-5)
                picture = np.asarray(pipe(prompt, latents=noise, num_inference_steps=steps)).astype(int)
                pixels = np.rint(np.clip(golden[f"ddim{steps}_image"][0] / 2 + 0.5, 0, 1) * 255).transpose(1, 2, 0)
                assert np.abs(picture - pixels).max() <= 1

    def test_graphs_load(self, bundle):
        graph = Graph.load(bundle, "vae_decoder")
        graph.validate()
        assert graph.outputs == {"sample": "decoder.conv_out"}
        with pytest.raises(mdrt.InvalidArgumentError, match="no component 'vae'; it has text_encoder"):
            Graph.load(bundle, "vae")


class TestSchedules:
    def entries(self, tmp_path, source="micro-a", **options):
        convert(DATA / source, tmp_path / "b.mdrt", **options)
        document = json.loads(_core.Model(str(tmp_path / "b.mdrt")).metadata())
        schedules = document["pipeline"]["schedules"]
        return [(s["num_inference_steps"], s["scheduler"], s["guidance_scale"]) for s in schedules]

    def test_defaults(self, tmp_path):
        counts = {20: 7.5, 1: 1, 2: 7.5, 4: 7.5, 8: 7.5}
        assert self.entries(tmp_path) == [(count, "ddim", scale) for count, scale in counts.items()]

    def test_one_value_serves_all(self, tmp_path):
        entries = self.entries(tmp_path, steps=[4, 1], scheduler=["ufogen"], guidance_scale=[1])
        assert entries == [(4, "ufogen", 1), (1, "ufogen", 1)]

    def test_one_value_for_each(self, tmp_path):
        entries = self.entries(tmp_path, steps=[1, 8], scheduler=["ufogen", "ddim"], guidance_scale=[1, 2])
        assert entries == [(1, "ufogen", 1), (8, "ddim", 2)]

    def test_rows(self, tmp_path):
        convert(DATA / "micro-a", tmp_path / "b.mdrt", steps=[3])
        rows = stored(tmp_path / "b.mdrt")["schedules/3"]
        expected = mdrt.schedulers.make_rows(
            json.loads((DATA / "micro-a/scheduler/scheduler_config.json").read_text()), "ddim", 3
        ).rows
        assert rows.shape == (3, 16)
        assert np.array_equal(rows[:, :14], expected)
        assert not rows[:, 14:].any()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": [1, 1]}, "different numbers"),
            ({"steps": []}, "different numbers"),
            ({"steps": [0]}, "num_inference_steps is 0"),
            ({"steps": [1, 2, 3], "scheduler": ["ddim", "ufogen"]}, "2 values of scheduler for 3 counts"),
            ({"guidance_scale": [1, 2]}, "2 values of guidance_scale for 5 counts"),
            ({"scheduler": ["euler"]}, "no scheduler 'euler'"),
            ({"size": (100, 128)}, "100x128 does not fit: width and height must be multiples of 8"),
            ({"size": (0, 128)}, "0x128 does not fit"),
            ({"format": "int4"}, "'int4' is not one of fp32, fp16"),
        ],
    )
    def test_bad_options(self, tmp_path, options, message):
        with pytest.raises(mdrt.Error, match=message):
            convert(DATA / "micro-a", tmp_path / "b.mdrt", **options)
        assert not list(tmp_path.iterdir())

    def test_size(self, tmp_path):
        convert(DATA / "micro-a", tmp_path / "b.mdrt", size=(96, 64), steps=[1])
        assert _core.Model(str(tmp_path / "b.mdrt")).size() == (96, 64)


class TestSpellings:
    """The same weights in the other forms that checkpoints come in make the same bundle."""

    def check(self, checkpoint, tmp_path, expected):
        convert(checkpoint, tmp_path / "b.mdrt", with_encoder=True, steps=[2])
        assert_same_tensors(tmp_path / "b.mdrt", expected)

    def test_text_model_prefix(self, checkpoint, tmp_path, expected):
        def change(tensors):
            for name in list(tensors):
                tensors[f"text_model.{name}"] = tensors.pop(name)
            tensors["text_model.embeddings.position_ids"] = np.arange(24, dtype=np.int64)[None]

        edit_weights(checkpoint / TEXT, change)
        self.check(checkpoint, tmp_path, expected)

    def test_old_attention_names(self, checkpoint, tmp_path, expected):
        def change(tensors):
            for name in list(tensors):
                for new_part, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
                    if f".{new_part}." in name:
                        array = tensors.pop(name)
                        array = array.reshape(*array.shape, 1, 1) if array.ndim == 2 else array
                        tensors[name.replace(new_part, old)] = array

        edit_weights(checkpoint / VAE, change)
        self.check(checkpoint, tmp_path, expected)

    def test_shards(self, checkpoint, tmp_path, expected):
        tensors = load_file(checkpoint / UNET)
        names, where = sorted(tensors), {}
        for part in range(3):
            file = f"diffusion_pytorch_model-0000{part + 1}-of-00003.safetensors"
            save_file({name: tensors[name] for name in names[part::3]}, checkpoint / "unet" / file)
            where.update(dict.fromkeys(names[part::3], file))
        (checkpoint / UNET).unlink()
        index = checkpoint / "unet/diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
        self.check(checkpoint, tmp_path, expected)
        index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
        with pytest.raises(mdrt.ConversionError, match="not a file in the same folder"):
            convert(checkpoint, tmp_path / "b.mdrt")

    def test_tokenizer_json(self, checkpoint, tmp_path, expected):
        folder = checkpoint / "tokenizer"
        vocab = json.loads((folder / "vocab.json").read_text())
        lines = (folder / "merges.txt").read_text().split("\n")[1:]
        merges = [line.split() for line in lines if line]
        special = [{"id": vocab.pop(token), "content": token, "special": True} for token in list(vocab)[:2]]
        document = {"added_tokens": special, "model": {"type": "BPE", "vocab": vocab, "merges": merges}}
        (folder / "tokenizer.json").write_text(json.dumps(document))
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
        self.check(checkpoint, tmp_path, expected)
        document["model"]["merges"] = [" ".join(pair) for pair in merges]
        (folder / "tokenizer.json").write_text(json.dumps(document))
        self.check(checkpoint, tmp_path, expected)

    def test_special_tokens_as_objects(self, checkpoint, tmp_path):
        edit_json(
            checkpoint / "tokenizer/tokenizer_config.json", pad_token={"content": "!", "lstrip": False}, unk_token=...
        )
        convert(checkpoint, tmp_path / "b.mdrt", steps=[1])
        document = json.loads(_core.Model(str(tmp_path / "b.mdrt")).metadata())["tokenizer"]
        assert (document["bos_token_id"], document["eos_token_id"], document["pad_token_id"]) == (0, 1, 2)
        assert document["unk_token_id"] == 1


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_stored_dtypes(tmp_path, dtype):
    """Halves and bfloat16 become the float32 numbers that they are."""
    values = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    if dtype == "F16":
        expected, raw = values.astype(np.float16).astype(np.float32), values.astype(np.float16).tobytes()
    else:
        bits = values.view(np.uint32) >> 16
        expected, raw = (bits << 16).view(np.float32), bits.astype(np.uint16).tobytes()
    header = json.dumps({"w": {"dtype": dtype, "shape": [5, 7], "data_offsets": [0, len(raw)]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + raw)
    files = TensorFiles(tmp_path)
    assert files.shape("w") == (5, 7)
    assert np.array_equal(files.read("w"), expected)


class TestRefusals:
    def refuse(self, checkpoint, tmp_path, message, **options):
        output = tmp_path / "out" / "b.mdrt"
        output.parent.mkdir(exist_ok=True)
        with pytest.raises(mdrt.Error, match=message) as caught:
            convert(checkpoint, output, **options)
        assert isinstance(caught.value, (mdrt.ConversionError, mdrt.UnsupportedError, mdrt.InvalidArgumentError))
        assert "\n" not in str(caught.value)
        assert not list(output.parent.iterdir())

    @pytest.mark.parametrize(
        ("file", "changes", "message"),
        [
            (
                "vae/config.json",
                {"_class_name": "AutoencoderTiny"},
                "_class_name is 'AutoencoderTiny'; only 'AutoencoderKL'",
            ),
            ("vae/config.json", {"act_fn": "relu"}, "act_fn is 'relu'"),
            ("vae/config.json", {"latents_mean": [0.1]}, "latents_mean"),
            ("vae/config.json", {"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "AttnDownEncoderBlock2D"),
            ("vae/config.json", {"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types"),
            ("vae/config.json", {"latent_channels": 5}, "latent_channels"),
            ("vae/config.json", {"norm_num_groups": 0}, "at least 1"),
            ("vae/config.json", {"norm_num_groups": 3}, "vae_decoder contradicts itself"),
            ("vae/config.json", {"new_feature": True}, "'new_feature' is unknown"),
            ("vae/config.json", {"scaling_factor": 0}, "scaling_factor"),
            ("unet/config.json", {"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
            ("unet/config.json", {"attention_fn": "linear"}, "attention_fn is 'linear'; it must be softmax or relu"),
            ("unet/config.json", {"act_fn": "mish"}, "act_fn is 'mish'"),
            (
                "unet/config.json",
                {"layers_per_block": [2, 1, 1]},
                "layers_per_block has 3 entries, block_out_channels 4",
            ),
            ("unet/config.json", {"downsample": [True]}, "downsample has 1 entries; 3 are needed"),
            ("unet/config.json", {"block_out_channels": [24, 40, "x", 72]}, "must be a list of whole numbers"),
            ("unet/config.json", {"block_out_channels": []}, "entries"),
            ("unet/config.json", {"in_channels": -4}, "whole numbers"),
            ("unet/config.json", {"in_channels": True}, "whole numbers"),
            ("unet/config.json", {"share_kv": 1}, "true or false"),
            ("unet/config.json", {"norm_num_groups": 7}, "unet contradicts itself"),
            ("unet/config.json", {"attention_head_dim": 100}, "0 heads"),
            ("unet/config.json", {"share_kv": True}, "to_kv.weight is missing"),
            ("unet/config.json", {"mid_transformer_layers": 0}, "has no place in the network"),
            ("unet/config.json", {"conv_in_kernel": 3}, "'conv_in_kernel' is unknown"),
            (
                "unet/config.json",
                {"cross_attention_dim": 64},
                "cross_attention_dim is 64, but the text encoder's hidden_size is 32",
            ),
            ("text_encoder/config.json", {"model_type": "t5"}, "model_type is 't5'"),
            ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act"),
            ("text_encoder/config.json", {"num_attention_heads": 5}, "text_encoder contradicts itself"),
            ("text_encoder/config.json", {"vocab_size": 100}, "token_embedding.weight is"),
            ("scheduler/scheduler_config.json", {"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
            ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding"),
            ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "zero terminal SNR"),
            ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "trained_betas"),
            ("tokenizer/tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}, "T5Tokenizer"),
            ("tokenizer/tokenizer_config.json", {"eos_token": "<end>"}, "eos_token '<end>' is not in the vocabulary"),
            ("tokenizer/tokenizer_config.json", {"model_max_length": "long"}, "model_max_length"),
            ("tokenizer/vocab.json", {"zebra": 5000}, "without hole"),
            ("tokenizer/vocab.json", {"zebra": "x"}, "not usable"),
        ],
    )
    def test_configurations(self, checkpoint, tmp_path, file, changes, message):
        edit_json(checkpoint / file, **changes)
        self.refuse(checkpoint, tmp_path, message)

    @pytest.mark.parametrize(
        ("file", "message"),
        [
            ("model_index.json", "no model_index.json"),
            ("unet/config.json", "unet/config.json is missing"),
            (UNET, "unet holds no weights"),
            (VAE, "vae holds no weights"),
            ("scheduler/scheduler_config.json", "is missing"),
            ("tokenizer/merges.txt", "neither vocab.json with merges.txt nor tokenizer.json"),
        ],
    )
    def test_missing_files(self, checkpoint, tmp_path, file, message):
        (checkpoint / file).unlink()
        self.refuse(checkpoint, tmp_path, message)

    @pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": 1', "\ufeff{}", "[" * 100000])
    def test_broken_json(self, checkpoint, tmp_path, content):
        (checkpoint / "unet/config.json").write_text(content)
        self.refuse(checkpoint, tmp_path, "unet/config.json")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.pop("conv_in.weight"), "conv_in.weight is missing"),
            (lambda t: t.update(lora_up=np.zeros(3, np.float32)), "lora_up has no place"),
            (
                lambda t: t.update({"conv_in.bias": np.zeros(25, np.float32)}),
                r"conv_in.bias is \[25\], but .* demands \[24\]",
            ),
            (lambda t: t.update({"conv_in.bias": np.zeros(24, np.int32)}), "is I32; weights must be F32, F16 or BF16"),
        ],
    )
    def test_weights(self, checkpoint, tmp_path, change, message):
        edit_weights(checkpoint / UNET, change)
        self.refuse(checkpoint, tmp_path, message)

    def test_a_value_beyond_halves(self, checkpoint, tmp_path):
        def change(tensors):
            tensors["conv_in.weight"][3, 1, 2, 0] = 1e5

        edit_weights(checkpoint / UNET, change)
        self.refuse(checkpoint, tmp_path, "fp16", format="fp16")
        convert(checkpoint, tmp_path / "b.mdrt", steps=[1])

    def test_damaged_weights(self, checkpoint, tmp_path):
        data = (checkpoint / UNET).read_bytes()
        (checkpoint / UNET).write_bytes(data[: len(data) // 2])
        self.refuse(checkpoint, tmp_path, "not a readable safetensors file")

    def test_merge_of_unknown_tokens(self, checkpoint, tmp_path):
        with open(checkpoint / "tokenizer/merges.txt", "a") as file:
            file.write("qqq zzz\n")
        self.refuse(checkpoint, tmp_path, "merge 'qqq' 'zzz' needs the token 'qqq'")

    def test_not_a_directory(self, tmp_path):
        with pytest.raises(mdrt.FileError, match="is not a directory"):
            convert(tmp_path / "nothing", tmp_path / "b.mdrt")

    def test_unwritable_output(self, tmp_path):
        with pytest.raises(mdrt.FileError, match="No such file or directory"):
            convert(DATA / "micro-a", tmp_path / "no" / "folder" / "b.mdrt")


def test_an_older_bundle_survives_a_failed_conversion(checkpoint, tmp_path):
    output = tmp_path / "b.mdrt"
    convert(checkpoint, output, steps=[1])
    before = output.read_bytes()
    edit_weights(checkpoint / UNET, lambda tensors: tensors["conv_in.weight"].fill(1e6))
    with pytest.raises(mdrt.Error):
        convert(checkpoint, output, format="fp16")
    assert output.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.mdrt", "checkpoint"]


def test_merges_listed_twice_keep_their_last_place(tmp_path):
    vocab = ["a", "b", "c", "ab", "bc", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocab)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nb c\na b\n")
    assert read_vocabulary(tmp_path, 10).merges == [(1, 2), (0, 1)]


SMALL = {
    "block_out_channels": [32, 32, 64, 64],
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "text_encoder.hidden_size": 32,
    "text_encoder.num_attention_heads": 2,
    "text_encoder.intermediate_size": 48,
    "text_encoder.num_hidden_layers": 2,
    "vae.block_out_channels": [32, 32],
}


class TestNew:
    def test_random_checkpoint_converts_and_runs(self, tmp_path):
        new(tmp_path / "c", settings=SMALL)
        convert(tmp_path / "c", tmp_path / "b.mdrt", steps=[1])
        with mdrt.Pipeline(tmp_path / "b.mdrt") as pipe:
            image = np.asarray(pipe("a walk in the park", seed=1, width=32, height=16))
        assert image.shape == (16, 32, 3)
        assert image.std() > 1  # neither black nor saturated
        vocabulary = read_vocabulary(tmp_path / "c/tokenizer", 77)
        assert len(vocabulary.tokens) == len(set(vocabulary.tokens)) == 49408
        assert len(vocabulary.merges) == len(set(vocabulary.merges)) == 48894
        assert (vocabulary.bos_token_id, vocabulary.eos_token_id) == (49406, 49407)

    def test_same_seed_same_checkpoint(self, tmp_path):
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            new(tmp_path / name, settings=SMALL, tokenizer=DATA / "micro-a/tokenizer", dtype="fp32", seed=seed)
        a, b, c = ((tmp_path / name / UNET).read_bytes() for name in "abc")
        assert a == b != c

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"preset": "sdxl"}, "no preset 'sdxl'; there are mobilediffusion, mobilediffusion-lite"),
            ({"dtype": "int8"}, "'int8' is not one of fp32, fp16"),
            ({"settings": {"unet.colour": 3}}, "no setting 'unet.colour'"),
            ({"settings": {"colour": 3}}, "no setting 'colour'"),
            ({"settings": {"layers_per_block": [1]}}, "layers_per_block has 1 entries"),
            ({"settings": {"block_out_channels": 320}}, "must be a list of whole numbers"),
            ({"settings": {"norm_num_groups": 7}}, "contradicts itself"),
        ],
    )
    def test_bad_options(self, tmp_path, options, message):
        with pytest.raises(mdrt.Error, match=message):
            new(tmp_path / "c", **options)
        assert not list(tmp_path.iterdir())

    def test_an_existing_folder_is_left_alone(self, tmp_path):
        (tmp_path / "keep.txt").write_text("mine")
        with pytest.raises(mdrt.FileError, match="not an empty directory"):
            new(tmp_path, settings=SMALL)
        assert [path.name for path in tmp_path.iterdir()] == ["keep.txt"]
