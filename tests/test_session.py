"""One component of a bundle: names of Optimum's exports, NCHW arrays, any batch."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from mini_bundle import tiny_bundle

import mdrt
from mdrt import models
from mdrt.session import TensorInfo
from mdrt.stages import Stages

YARDSTICK = Path(__file__).parent / "data/emoji-fp16.mdrt"


@pytest.fixture(scope="module")
def sessions():
    opened = {name: mdrt.Session(models.builtin_path(), name) for name in ("text_encoder", "unet", "vae_decoder")}
    yield opened
    for session in opened.values():
        session.close()


def unet_inputs(batch=1, height=16, width=16):
    generator = np.random.default_rng(0)
    return {
        "sample": generator.standard_normal((batch, 8, height, width)).astype(np.float32),
        "timestep": np.full(batch, 500, dtype=np.int64),
        "encoder_hidden_states": generator.standard_normal((batch, 24, 192)).astype(np.float32),
    }


def relative_rmse(a, b):
    return np.sqrt(np.mean((a.astype(np.float64) - b) ** 2) / np.mean(b.astype(np.float64) ** 2))


def test_signatures(sessions):
    assert sessions["text_encoder"].inputs[0].name == "input_ids"
    assert sessions["text_encoder"].inputs[0].dtype == "int32"
    assert [output.name for output in sessions["text_encoder"].outputs] == ["last_hidden_state"]
    unet = sessions["unet"]
    assert [entry.name for entry in unet.inputs] == ["sample", "timestep", "encoder_hidden_states"]
    assert unet.inputs[0].shape[0] == "batch" and unet.inputs[0].shape[1] == 8
    assert unet.outputs == [TensorInfo("out_sample", ("batch", 8, None, None), "float32")]
    assert [entry.name for entry in sessions["vae_decoder"].inputs] == ["latent_sample"]
    assert sessions["vae_decoder"].outputs == [TensorInfo("sample", ("batch", 3, None, None), "float32")]


def test_shapes(sessions):
    ids = np.zeros((3, 24), dtype=np.int64)
    assert sessions["text_encoder"].run(input_ids=ids)["last_hidden_state"].shape == (3, 24, 192)
    assert sessions["unet"].run(**unet_inputs(2, 9, 13))["out_sample"].shape == (2, 8, 9, 13)
    latent = np.zeros((2, 8, 4, 6), dtype=np.float32)
    result = sessions["vae_decoder"].run(latent_sample=latent)["sample"]
    assert result.shape == (2, 3, 32, 48) and result.dtype == np.float32 and result.flags.c_contiguous


def test_int8_components(tmp_path):
    """Whole components differ from the reference by the halves that activations are between layers."""
    path, generator = tmp_path / "int8.mdrt", np.random.default_rng(1)
    path.write_bytes(tiny_bundle(int8=True).to_bytes())
    inputs = {
        "text_encoder": {"input_ids": np.array([[0, 2, 3, 4, 5, 1], [7, 6, 5, 4, 3, 2]])},
        "unet": {
            "sample": generator.standard_normal((2, 4, 5, 6)),
            "timestep": np.array([500, 3]),
            "encoder_hidden_states": generator.standard_normal((2, 6, 16)),
        },
    }
    for component, feeds in inputs.items():
        (result,) = mdrt.Session(path, component).run(**feeds).values()
        (expected,) = mdrt.Session(path, component, backend="reference").run(**feeds).values()
        assert relative_rmse(result, expected) < 2e-3


def test_components_make_the_pipeline_s_picture(sessions):
    with mdrt.Pipeline() as pipe:
        prompt, noise = "red apple", mdrt._core.philox_normal(4, 0, 8 * 16 * 16).reshape(1, 8, 16, 16)
        expected = pipe(prompt, latents=noise, num_inference_steps=1, guidance_scale=1, output_type="latent")
        rows = {name: array for name, _, _, array in pipe._model.tensors()}["schedules/1"]
        ids = np.array([pipe._model.tokenize(prompt)])
    context = sessions["text_encoder"].run(input_ids=ids)["last_hidden_state"]
    t, p, q, clip, a, b, e = rows[0, :7]
    out = sessions["unet"].run(sample=noise, timestep=t, encoder_hidden_states=context)["out_sample"]
    y = p * noise + q * out
    y = np.clip(y, -clip, clip) if clip else y
    assert relative_rmse(a * noise + b * y + e * out, expected) < 1e-6


def test_batch_rows_do_not_mix(sessions):
    inputs = unet_inputs(3)
    together = sessions["unet"].run(**inputs)["out_sample"]
    for row in range(3):
        alone = sessions["unet"].run(**{name: array[row : row + 1] for name, array in inputs.items()})["out_sample"]
        assert np.array_equal(alone[0], together[row])


# Of int8 two engines round many activations to neighbouring integers, and eight bits cost about 2 % themselves.
@pytest.mark.parametrize(("path", "bound"), [(YARDSTICK, 3e-3), (models.builtin_path(), 6e-2)], ids=["fp16", "int8"])
def test_inner_values_and_reference_backend(path, bound):
    """With a real prompt: what no text encoder gives, the UNet answers with last places magnified ten times as much."""
    inputs = unet_inputs(1, 3, 5) | {"encoder_hidden_states": Stages(path).context(["tiger on a blue background"])}
    with mdrt.Session(path, "unet", backend="reference") as reference:
        expected = reference.run(["out_sample", "conv_in"], **inputs)
    with mdrt.Session(path, "unet") as native:
        results = native.run(["out_sample", "conv_in"], **inputs)
    assert list(results) == ["out_sample", "conv_in"]
    assert results["conv_in"].shape == expected["conv_in"].shape and results["conv_in"].shape[2:] == (3, 5)
    assert relative_rmse(results["conv_in"], expected["conv_in"]) < 1e-6
    assert relative_rmse(results["out_sample"], expected["out_sample"]) < bound


def test_timestep_may_be_one_number(sessions):
    inputs = unet_inputs(2)
    expected = sessions["unet"].run(**inputs)["out_sample"]
    for timestep in (500, 500.0, np.float64(500), np.array([500])):
        assert np.array_equal(sessions["unet"].run(**{**inputs, "timestep": timestep})["out_sample"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": None}, "needs the input 'sample'"),
        ({"extra": 1}, "no input 'extra'"),
        ({"sample": np.zeros((1, 4, 16, 16), np.float32)}, "sample"),
        ({"sample": np.zeros((8, 16, 16), np.float32)}, "sample"),
        ({"sample": np.zeros((1, 8, 0, 16), np.float32)}, "sample"),
        ({"sample": np.zeros((1, 8, 16, 16), np.complex64)}, "sample"),
        ({"sample": "noise"}, "sample"),
        ({"timestep": [1, 2, 3]}, "batch|timestep"),
        ({"encoder_hidden_states": np.zeros((2, 24, 192), np.float32)}, "batch|encoder_hidden_states"),
    ],
    ids=str,
)
def test_wrong_inputs(sessions, change, message):
    inputs = {name: value for name, value in {**unet_inputs(), **change}.items() if value is not None}
    with pytest.raises(mdrt.InvalidArgumentError, match=message):
        sessions["unet"].run(**inputs)


@pytest.mark.parametrize("ids", [[[-1] * 24], [[2048] * 24], [[2**40] * 24], [[0.5] * 24]], ids=str)
def test_wrong_ids(sessions, ids):
    with pytest.raises(mdrt.InvalidArgumentError, match="input_ids"):
        sessions["text_encoder"].run(input_ids=np.array(ids))


def test_wrong_names():
    with pytest.raises(mdrt.InvalidArgumentError, match=r"no component 'tokenizer'; it has .*unet"):
        mdrt.Session(models.builtin_path(), "tokenizer")
    with pytest.raises(mdrt.InvalidArgumentError, match="backend"):
        mdrt.Session(models.builtin_path(), "unet", backend="gpu")
    with pytest.raises(mdrt.InvalidArgumentError, match="threads"):
        mdrt.Session(models.builtin_path(), "unet", threads=-1)
    with (
        mdrt.Session(models.builtin_path(), "unet") as session,
        pytest.raises(mdrt.InvalidArgumentError, match="nothing"),
    ):
        session.run(["nothing"], **unet_inputs())
    with pytest.raises(mdrt.InvalidArgumentError, match="closed"):
        session.run(**unet_inputs())


def test_interrupt(sessions):
    def interrupt(*_):
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    inputs = unet_inputs(256)
    try:
        begin = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(mdrt.Cancelled) as caught:
            sessions["unet"].run(**inputs)
        assert isinstance(caught.value, KeyboardInterrupt)
        assert time.monotonic() - begin < 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert sessions["unet"].run(**unet_inputs())["out_sample"].shape == (1, 8, 16, 16)


def test_stored_tensors_are_views(sessions):
    model = sessions["unet"]._model
    tensors = {name: array for name, _, _, array in model.tensors()}
    stated = json.loads(model.metadata())["checksums"]
    for name in list(stated)[:20]:
        assert f"{mdrt._core.crc32c(tensors[name]):08x}" == stated[name]
        assert not tensors[name].flags.writeable and not tensors[name].flags.owndata
