"""Calibration and the choice of formats: what is seen, what becomes int8, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mdrt
from mdrt import _core, compare, prompts
from mdrt.cli import main
from mdrt.quantise import layers
from mdrt.stages import Stages
from weights_tools import calibrate as calibration
from weights_tools import quantise
from weights_tools.calibrate import DEFAULT_PROMPTS, Record, calibrate
from weights_tools.checkpoint import Checkpoint
from weights_tools.components import load_networks
from weights_tools.convert import convert

DATA = Path(__file__).parent / "data"
PROMPTS = ["red apple", "tiger on a blue background", "pizza"]
MODELS = ("micro-a", "micro-b")
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """Name, networks, and bundles in fp32 and int8 with the choices of the latter."""
    folder = tmp_path_factory.mktemp(request.param)
    options = {"steps": [1, 8], "guidance_scale": [1, 2], "with_encoder": True}
    convert(DATA / request.param, folder / "fp32.mdrt", **options)
    choices = convert(DATA / request.param, folder / "int8.mdrt", format="int8", **options)
    networks = load_networks(Checkpoint(DATA / request.param), with_encoder=True).components
    return request.param, networks, folder / "fp32.mdrt", folder / "int8.mdrt", choices


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copytree(DATA / "micro-a", tmp_path / "checkpoint", ignore=shutil.ignore_patterns("golden.npz"))
    return tmp_path / "checkpoint"


def edit_unet(checkpoint, name, change):
    tensors = load_file(checkpoint / UNET)
    tensors[name] = change(tensors[name]).astype(tensors[name].dtype)
    save_file(tensors, checkpoint / UNET)


def node_inputs(stages, component, layer, **feeds):
    names = {node.inputs[0] for node in layer.nodes}
    wanted = [name for name in names if name not in feeds]
    inner = stages.run(component, wanted, **feeds) if wanted else {}
    return [feeds.get(name, inner.get(name)) for name in names]


class TestRecords:
    def test_ranges_are_those_of_the_pictures(self, model):
        """By hand: both stored schedules with a prompt each, all recorded steps, then the decoder."""
        _, networks, bundle, *_ = model
        watched = {
            component: {name: layer for name, layer in layers(network.graph).items() if layer.op != "embedding"}
            for component, network in networks.items()
            if component != "vae_encoder"
        }
        records = calibrate(bundle, watched, PROMPTS[:2])
        stages = Stages(bundle)
        expected = {component: {name: [0.0, 0.0] for name in found} for component, found in watched.items()}

        def see(component, **feeds):
            for name, layer in watched[component].items():
                for array in node_inputs(stages, component, layer, **feeds):
                    low, high = expected[component][name]
                    expected[component][name] = [min(low, array.min()), max(high, array.max())]

        for number, (prompt, steps, recorded) in enumerate([(PROMPTS[0], 1, [0]), (PROMPTS[1], 8, [0, 2, 5, 7])]):
            texts = [prompt] if steps == 1 else ["", prompt]
            see("text_encoder", input_ids=stages.ids(texts))
            schedule, guidance = stages.schedule(steps)
            *latents, last = stages.walk(prompt, stages.noise(number), schedule, guidance, number)
            for index in recorded:
                see("unet", **stages.unet_feeds(latents[index], schedule.rows[index, 0], stages.context(texts)))
            see("vae_decoder", **stages.decoder_feeds(last))
        for component, found in expected.items():
            for name, limits in found.items():
                record = records[component][name]
                assert [record.low, record.high] == pytest.approx(limits, rel=1e-4, abs=1e-5), name

    def test_few_values_at_a_time(self, model, monkeypatch):
        _, networks, bundle, *_ = model
        watched = quantise.candidates(networks)
        expected = calibrate(bundle, watched, PROMPTS[:2])
        monkeypatch.setattr(calibration, "_FETCHED_BYTES", 1)
        found = calibrate(bundle, watched, PROMPTS[:2])
        for component, records in expected.items():
            for name, record in records.items():
                other = found[component][name]
                assert (record.low, record.high) == pytest.approx((other.low, other.high), rel=1e-4, abs=1e-5), name

    def test_record(self):
        record = Record()
        arrays = [np.full((2, 40, 18, 3), value, np.float32) for value in (1.5, 2.5, 0.5)]
        for array in arrays:
            record.add(array)
        assert (record.low, record.high) == (0, 2.5)
        assert [piece.shape for piece in record.pieces] == [(1, 16, 16, 3)] * 2
        assert [float(piece.max()) for piece in record.pieces] == [1.5, 0.5]
        tokens = Record()
        tokens.add(np.arange(600, dtype=np.float32).reshape(1, 300, 2) - 700)
        assert (tokens.low, tokens.high) == (-700, 0) and tokens.pieces[0].shape == (1, 256, 2)

    def test_large_models_make_one_picture_of_each_schedule(self, model, monkeypatch):
        stages = Stages(model[2])
        assert calibration._pictures(stages, PROMPTS) == [(PROMPTS[0], 1), (PROMPTS[1], 8), (PROMPTS[2], 1)]
        assert calibration._pictures(stages, PROMPTS[:1]) == [(PROMPTS[0], 1), (PROMPTS[0], 8)]
        monkeypatch.setattr(calibration, "_MACS", 1)
        assert calibration._pictures(stages, PROMPTS) == [(PROMPTS[0], 1), (PROMPTS[1], 8)]

    def test_long_schedules_are_left_out(self, tmp_path):
        convert(DATA / "micro-a", tmp_path / "a.mdrt")
        convert(DATA / "micro-a", tmp_path / "b.mdrt", steps=[20, 12])
        assert {steps for _, steps in calibration._pictures(Stages(tmp_path / "a.mdrt"), PROMPTS * 3)} == {1, 2, 4, 8}
        assert {steps for _, steps in calibration._pictures(Stages(tmp_path / "b.mdrt"), PROMPTS)} == {12}

    def test_default_prompts(self):
        found = prompts.read(DEFAULT_PROMPTS)
        assert len(found) == len(set(found)) == 32
        assert not set(found) & set(prompts.read(DATA / "prompts.txt")), "quality is judged by other prompts"


class TestChoice:
    def test_what_is_never_int8(self, model):
        *_, choices = model
        reasons = {(choice.component, choice.layer): choice.reason for choice in choices}
        for layer in ("conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"):
            assert reasons["unet", layer] == "ends"
        assert reasons["vae_decoder", "decoder.conv_in"] == reasons["vae_decoder", "decoder.conv_out"] == "ends"
        assert {choice.reason for choice in choices if choice.component == "vae_encoder"} == {"encoder"}
        context = [choice for choice in choices if choice.reason == "context"]
        assert context and all(".attn2.to_" in choice.layer for choice in context)
        for choice in choices:
            assert (choice.format == "int8") == (choice.reason == "") == (choice.error is not None)

    def test_the_bundle_says_which(self, model):
        _, networks, _, path, choices = model
        bundle = _core.Model(str(path))
        bundle.verify()
        dtypes = {name: dtype for name, dtype, _, _ in bundle.tensors()}
        for choice in choices:
            layer = layers(networks[choice.component].graph)[choice.layer]
            assert dtypes[f"{choice.component}/{layer.weight}"] == choice.format.removesuffix("_weights")
            has_sums = f"{choice.component}/{choice.layer}.weight_sum" in dtypes
            assert has_sums == (choice.format == "int8" and choice.op != "embedding")
            is_static = f"{choice.component}/{choice.layer}.input_scale" in dtypes
            assert is_static == (choice.input == "static" and choice.format == "int8")
        assert len(choices) == sum(len(layers(network.graph)) for network in networks.values())

    def test_errors_are_those_of_eight_bits(self, model):
        *_, choices = model
        errors = [choice.error for choice in choices if choice.error is not None]
        assert min(errors) > 0.001
        assert max(errors) <= quantise.MAX_ERROR
        assert 0.003 < np.median(errors) < 0.02

    @pytest.mark.parametrize(
        ("input_factor", "weight_factor", "format"),
        [(1000, 0, "int8_weights"), (0, 1000, "fp16")],
        ids=["inputs", "weights"],
    )
    def test_outliers(self, checkpoint, tmp_path, input_factor, weight_factor, format):
        """A channel a thousand times as large as the others, which comes to nothing, leaves nothing of the others."""
        block = "mid_block.attentions.0.transformer_blocks.0"
        layer = f"{block}.ff.net.0.proj"

        def scaled(factor):
            def scale(weight):
                weight = np.array(weight)
                weight[..., 0] *= factor
                return weight

            return scale

        edit_unet(checkpoint, f"{block}.norm3.weight", scaled(input_factor))
        edit_unet(checkpoint, f"{block}.norm3.bias", scaled(input_factor))
        edit_unet(checkpoint, f"{layer}.weight", scaled(weight_factor))
        choices = convert(checkpoint, tmp_path / "b.mdrt", format="int8", steps=[1])
        (found,) = [choice for choice in choices if choice.layer == layer]
        assert (found.format, found.reason) == (format, "error") and found.error > quantise.MAX_ERROR
        assert (found.weights_error > quantise.MAX_ERROR) == (format == "fp16")
        printed = next(line for line in quantise.text(quantise.report(choices)).splitlines() if layer in line)
        assert f"{100 * found.weights_error:.2f} %  {format} (error)" in printed

    def test_the_largest_error_of_a_component(self, model, tmp_path):
        name, *_, choices = model
        errors = {choice.layer: choice.error for choice in choices if choice.component == "unet" and choice.error}
        middle = float(np.median(list(errors.values())))
        options = {"steps": [1, 8], "guidance_scale": [1, 2], "with_encoder": True}
        found = convert(DATA / name, tmp_path / "b.mdrt", format="int8", max_error={"unet": middle}, **options)
        for choice in found:
            too_large = choice.component == "unet" and errors.get(choice.layer, 0) > middle
            assert (choice.reason == "error") == too_large
        assert f"unet {100 * middle:g} %" in quantise.text(quantise.report(found))

    def test_quality(self, model):
        """Eight bits cost little; the report's errors explain them."""
        _, _, a, b, _ = model
        results = compare.run(a, b, prompts=PROMPTS, num_inference_steps=1)
        for stage in results["stages"].values():
            assert stage["worst"] > 30
        assert results["worst"] > 25

    def test_deterministic(self, model, tmp_path):
        name, _, _, path, _ = model
        options = {"steps": [1, 8], "guidance_scale": [1, 2], "with_encoder": True}
        convert(DATA / name, tmp_path / "again.mdrt", format="int8", threads=1, **options)
        assert (tmp_path / "again.mdrt").read_bytes() == path.read_bytes()


class TestRefused:
    def test_nan(self, checkpoint, tmp_path):
        def spoil(weight):
            weight = np.array(weight)
            weight[0] = np.nan
            return weight

        edit_unet(checkpoint, "mid_block.resnets.0.norm1.bias", spoil)
        with pytest.raises(mdrt.NumericError):
            convert(checkpoint, tmp_path / "b.mdrt", format="int8", steps=[1])
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]

    def test_nan_names_the_layer(self, model, monkeypatch):
        _, networks, bundle, *_ = model
        run = Stages.run

        def spoilt(self, component, outputs, **feeds):
            results = run(self, component, outputs, **feeds)
            return {name: array * np.nan if "mid_block" in name else array for name, array in results.items()}

        monkeypatch.setattr(Stages, "run", spoilt)
        with pytest.raises(mdrt.NumericError, match=r"of layer mid_block\.\S+ of the unet holds NaN"):
            calibrate(bundle, {"unet": quantise.candidates(networks)["unet"]}, PROMPTS)

    def test_too_large_for_halves(self, checkpoint, tmp_path):
        edit_unet(checkpoint, "mid_block.attentions.0.norm.weight", lambda weight: weight * 30000)
        with pytest.raises(mdrt.ConversionError, match=r"reaches \S+; int8 bundles keep activations as halves"):
            convert(checkpoint, tmp_path / "b.mdrt", format="int8", steps=[1])
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]

    def test_no_prompt(self, model):
        _, networks, bundle, *_ = model
        with pytest.raises(mdrt.InvalidArgumentError, match="there is no prompt to calibrate with"):
            calibrate(bundle, quantise.candidates(networks), [])

    def test_calibration_of_floats(self, tmp_path):
        with pytest.raises(mdrt.InvalidArgumentError, match="only int8 is calibrated, not fp16"):
            convert(DATA / "micro-a", tmp_path / "b.mdrt", format="fp16", calibration_prompts=PROMPTS)

    @pytest.mark.parametrize("max_error", [{"unet": -0.01}, {"unet": float("nan")}, {"u-net": 0.01}], ids=str)
    def test_largest_error(self, max_error, tmp_path):
        with pytest.raises(mdrt.InvalidArgumentError, match=r"max_error is .*text_encoder, unet, vae_decoder"):
            convert(DATA / "micro-a", tmp_path / "b.mdrt", format="int8", max_error=max_error)

    def test_missing_folder(self, tmp_path):
        with pytest.raises(mdrt.WriteError):
            convert(DATA / "micro-a", tmp_path / "missing" / "b.mdrt", format="int8")


class TestCommand:
    def test_report(self, tmp_path, capsys):
        (tmp_path / "p.txt").write_text("pizza\n")
        report = tmp_path / "report.json"
        arguments = ["convert", str(DATA / "micro-a"), "-o", str(tmp_path / "b.mdrt"), "--format", "int8"]
        arguments += ["--calibrate", str(tmp_path / "p.txt"), "--report", str(report), "--steps", "1"]
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        found = json.loads(report.read_text())
        assert set(found["max_error"].values()) == {quantise.MAX_ERROR} and set(found["parameters"]) == {"int8", "fp16"}
        for entry in found["layers"]:
            assert entry["layer"] in printed
        assert sorted(path.name for path in tmp_path.iterdir()) == ["b.mdrt", "p.txt", "report.json"]
        assert main(["inspect", str(tmp_path / "b.mdrt"), "--verify"]) == 0
        assert "format 1.1" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--format", "int8", "--calibrate", "empty.txt"],
            ["--format", "int8", "--calibrate", "missing.txt"],
            ["--format", "fp16", "--calibrate", "prompts.txt"],
            ["--report", "report.json"],
        ],
        ids=" ".join,
    )
    def test_bad_input(self, arguments, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty.txt").write_text("\n \n")
        (tmp_path / "prompts.txt").write_text("pizza\n")
        assert main(["convert", str(DATA / "micro-a"), "-o", "b.mdrt", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("mdrt: ")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "prompts.txt"]
