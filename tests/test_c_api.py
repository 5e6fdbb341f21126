"""The C interface through cffi in ABI mode, from the declarations of the installed header, on the built-in model."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import test_memory

import mdrt
from mdrt import _core, models, schedulers

cffi = pytest.importorskip("cffi", reason="the C interface is tested through cffi")

ROOT = Path(__file__).parents[1]
PROMPT = b"tiger on a blue background"
SIDE = 128

OK, ARGUMENT, IO, BUNDLE, _, MEMORY, CANCELLED, NUMERIC, STATE, _ = range(10)
DONE = 3


def declarations() -> str:
    header = (Path(mdrt.get_include()) / "mdrt.h").read_text()
    return (
        header.split("declarations begin (read by cffi) */")[1].split("/* declarations end")[0].replace("MDRT_API ", "")
    )


ffi = cffi.FFI()
ffi.cdef(declarations())


@pytest.fixture(scope="module")
def lib():
    return ffi.dlopen(mdrt.get_library())


@pytest.fixture(scope="module")
def path():
    return models.builtin_path().encode()


def open_model(lib, path, **settings):
    options = ffi.new("mdrt_options *")
    lib.mdrt_options_init(options)
    for name, value in settings.items():
        setattr(options, name, value)
    model, errbuf = ffi.new("mdrt_model **"), ffi.new("char[512]")
    status = lib.mdrt_open(path, options, model, errbuf, 512)
    return status, model[0], ffi.string(errbuf).decode()


@pytest.fixture
def model(lib, path):
    status, opened, message = open_model(lib, path)
    assert status == OK, message
    yield opened
    lib.mdrt_close(opened)


def message(lib, model):
    return ffi.string(lib.mdrt_error_message(model)).decode()


def params(lib, **settings):
    """Also returns what must live as long as the struct."""
    result = ffi.new("mdrt_generate_params *")
    lib.mdrt_generate_params_init(result)
    kept = [ffi.new("char[]", settings.pop("prompt", PROMPT))]
    result.prompt = kept[0]
    for name, value in settings.items():
        if isinstance(value, bytes):
            value = ffi.new("char[]", value)
        elif isinstance(value, np.ndarray):
            value = ffi.from_buffer("float[]" if name == "latents" else "mdrt_schedule_row[]", value)
        kept.append(value)
        setattr(result, name, value)
    return result, kept


def generate(lib, model, callback=ffi.NULL, stride=3 * SIDE, **settings):
    given, _kept = params(lib, **settings)
    pixels = np.full((SIDE, stride), 7, dtype=np.uint8)
    status = lib.mdrt_generate(model, given, callback, ffi.NULL, ffi.from_buffer("uint8_t[]", pixels), stride)
    return status, pixels


@pytest.fixture(scope="module")
def tiger(lib, path):
    _, opened, _ = open_model(lib, path)
    status, pixels = generate(lib, opened, seed=1)
    lib.mdrt_close(opened)
    assert status == OK
    return pixels


def begin(lib, model, **settings):
    given, _kept = params(lib, **settings)
    job = ffi.new("mdrt_job **")
    return lib.mdrt_begin(model, given, job), job[0]


def finish(lib, job):
    event = ffi.new("mdrt_event *")
    while event.stage != DONE:
        assert lib.mdrt_advance(job, event) == OK
    return event


def tensor(name, array=None, **settings):
    result = ffi.new("mdrt_tensor *")
    kept = [ffi.new("char[]", name)]
    result.name = kept[0]
    if array is not None:
        result.dtype = 1 if array.dtype == np.int32 else 0
        result.rank = array.ndim
        result.shape = list(array.shape) + [0] * (6 - array.ndim)
        result.data = ffi.cast("void *", ffi.from_buffer(array))
        result.size_bytes = array.nbytes
        kept.append(array)
    for key, value in settings.items():
        setattr(result, key, value)
    return result, kept


def run(lib, model, component, inputs, outputs):
    given = ffi.new("mdrt_tensor[]", [pair[0][0] for pair in inputs]) if inputs else ffi.NULL
    wanted = ffi.new("mdrt_tensor[]", [pair[0][0] for pair in outputs]) if outputs else ffi.NULL
    status = lib.mdrt_run(model, component, given, len(inputs), wanted, len(outputs))
    return status, [list(wanted[i].shape[0 : wanted[i].rank]) for i in range(len(outputs))]


def ids(batch=1, length=24, value=5):
    return np.full((batch, length), value, dtype=np.int32)


# Opening


def test_version_and_words(lib):
    assert ffi.string(lib.mdrt_version()).decode() == mdrt.__version__
    words = [ffi.string(lib.mdrt_status_string(status)) for status in range(10)]
    assert len(set(words)) == 10
    assert ffi.string(lib.mdrt_status_string(77)) == b"unknown status"


def test_init_functions_state_the_size(lib):
    options, given = ffi.new("mdrt_options *"), ffi.new("mdrt_generate_params *")
    lib.mdrt_options_init(options)
    lib.mdrt_generate_params_init(given)
    assert options.struct_size == ffi.sizeof("mdrt_options")
    assert given.struct_size == ffi.sizeof("mdrt_generate_params")
    assert math.isnan(given.guidance_scale) and given.init_noise_sigma == 1
    lib.mdrt_options_init(ffi.NULL)
    lib.mdrt_generate_params_init(ffi.NULL)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"struct_size": 8}, "options.struct_size"),
        ({"threads": -1}, "threads is -1"),
        ({"threads": 100_000}, "threads is 100000"),
        ({"max_memory_bytes": -1}, "max_memory_bytes"),
    ],
)
def test_options_that_are_refused(lib, path, settings, words):
    status, opened, sentence = open_model(lib, path, **settings)
    assert (status, opened) == (ARGUMENT, ffi.NULL)
    assert words in sentence


def test_files_that_cannot_be_opened(lib, tmp_path):
    status, opened, sentence = open_model(lib, str(tmp_path / "none.mdrt").encode())
    assert (status, opened) == (IO, ffi.NULL)
    assert "none.mdrt" in sentence
    (tmp_path / "text.mdrt").write_text("<html>not found</html>" * 10)
    status, opened, sentence = open_model(lib, str(tmp_path / "text.mdrt").encode())
    assert (status, opened) == (BUNDLE, ffi.NULL)
    assert sentence


def test_open_with_null_arguments(lib, path):
    model, errbuf = ffi.new("mdrt_model **"), ffi.new("char[512]")
    assert lib.mdrt_open(ffi.NULL, ffi.NULL, model, errbuf, 512) == ARGUMENT
    assert b"path is NULL" in ffi.string(errbuf)
    assert lib.mdrt_open(path, ffi.NULL, ffi.NULL, errbuf, 512) == ARGUMENT
    assert lib.mdrt_open(b"/nowhere", ffi.NULL, model, ffi.NULL, 0) == IO
    assert lib.mdrt_open(b"/nowhere", ffi.NULL, model, errbuf, 8) == IO
    assert len(ffi.string(errbuf)) == 7
    assert lib.mdrt_open(path, ffi.NULL, model, ffi.NULL, 0) == OK
    lib.mdrt_close(model[0])


def test_bundle_in_memory(lib, path, tiger):
    data = Path(path.decode()).read_bytes()
    block = np.zeros(len(data) + 64, dtype=np.uint8)
    start = -block.ctypes.data % 64
    block[start : start + len(data)] = np.frombuffer(data, dtype=np.uint8)
    address = ffi.cast("char *", ffi.from_buffer(block)) + start
    model, errbuf = ffi.new("mdrt_model **"), ffi.new("char[512]")
    assert lib.mdrt_open_memory(address + 1, len(data) - 1, ffi.NULL, model, errbuf, 512) == ARGUMENT
    assert b"aligned" in ffi.string(errbuf)
    assert lib.mdrt_open_memory(ffi.NULL, 100, ffi.NULL, model, errbuf, 512) == ARGUMENT
    assert lib.mdrt_open_memory(address, len(data) - 64, ffi.NULL, model, errbuf, 512) == BUNDLE
    assert lib.mdrt_open_memory(address, len(data), ffi.NULL, model, errbuf, 512) == OK
    status, pixels = generate(lib, model[0], seed=1)
    lib.mdrt_close(model[0])
    assert status == OK
    np.testing.assert_array_equal(pixels, tiger)


def test_verify(lib, model, path, tmp_path):
    assert lib.mdrt_verify(model) == OK
    damaged = bytearray(Path(path.decode()).read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "damaged.mdrt").write_bytes(damaged)
    status, opened, sentence = open_model(lib, str(tmp_path / "damaged.mdrt").encode())
    assert status == OK, sentence
    assert lib.mdrt_verify(opened) == BUNDLE
    assert message(lib, opened)
    lib.mdrt_close(opened)


def test_null_models_and_jobs(lib):
    n = ffi.NULL
    assert lib.mdrt_verify(n) == ARGUMENT
    assert lib.mdrt_get_size(n, n, n) == ARGUMENT
    assert lib.mdrt_get_schedule_count(n, n) == ARGUMENT
    assert lib.mdrt_get_schedule(n, 0, n, n, n) == ARGUMENT
    assert lib.mdrt_get_component_count(n, n) == ARGUMENT
    assert lib.mdrt_get_component_name(n, 0, n) == ARGUMENT
    assert lib.mdrt_get_input(n, n, 0, n) == ARGUMENT
    assert lib.mdrt_get_output(n, n, 0, n) == ARGUMENT
    assert lib.mdrt_run(n, n, n, 0, n, 0) == ARGUMENT
    assert lib.mdrt_begin(n, n, n) == ARGUMENT
    assert lib.mdrt_advance(n, n) == ARGUMENT
    assert lib.mdrt_get_pixels(n, n, 0) == ARGUMENT
    assert lib.mdrt_get_latents(n, n, 0) == ARGUMENT
    assert lib.mdrt_get_latents_shape(n, n) == ARGUMENT
    assert lib.mdrt_generate(n, n, n, n, n, 0) == ARGUMENT
    assert b"NULL" in ffi.string(lib.mdrt_error_message(n))
    lib.mdrt_cancel(n)
    lib.mdrt_end(n)
    lib.mdrt_close(n)


def test_null_arguments_of_a_model(lib, model):
    n = ffi.NULL
    job = ffi.new("mdrt_job **")
    given, _kept = params(lib)
    for status in (
        lib.mdrt_get_size(model, n, n),
        lib.mdrt_get_schedule_count(model, n),
        lib.mdrt_get_schedule(model, 0, n, n, n),
        lib.mdrt_get_component_count(model, n),
        lib.mdrt_get_component_name(model, 0, n),
        lib.mdrt_get_input(model, n, 0, n),
        lib.mdrt_get_input(model, b"unet", 0, n),
        lib.mdrt_get_output(model, n, 0, n),
        lib.mdrt_get_output(model, b"unet", 0, n),
        lib.mdrt_run(model, n, n, 0, n, 0),
        lib.mdrt_run(model, b"unet", n, 1, n, 1),
        lib.mdrt_run(model, b"unet", n, -1, n, 1),
        lib.mdrt_begin(model, n, job),
        lib.mdrt_begin(model, given, n),
        lib.mdrt_generate(model, n, n, n, n, 0),
        lib.mdrt_generate(model, given, n, n, n, 0),
    ):
        assert status == ARGUMENT
    assert "NULL" in message(lib, model)


# What a bundle holds


def test_size_and_schedules(lib, path, model):
    width, height, count = ffi.new("int32_t *"), ffi.new("int32_t *"), ffi.new("int32_t *")
    assert lib.mdrt_get_size(model, width, height) == OK
    assert (width[0], height[0]) == (SIDE, SIDE)
    assert lib.mdrt_get_schedule_count(model, count) == OK
    steps, guidance, name = ffi.new("int32_t *"), ffi.new("double *"), ffi.new("char **")
    found = []
    for index in range(count[0]):
        assert lib.mdrt_get_schedule(model, index, steps, guidance, name) == OK
        found.append((steps[0], guidance[0], ffi.string(name[0]).decode()))
    keys = ("num_inference_steps", "guidance_scale", "scheduler")
    stored = json.loads(_core.Model(path.decode()).metadata())["pipeline"]["schedules"]
    assert found == [tuple(entry[key] for key in keys) for entry in stored]
    assert found[0][0] == 1
    for index in (-1, count[0]):
        assert lib.mdrt_get_schedule(model, index, steps, guidance, name) == ARGUMENT


def test_components(lib, model):
    count, name = ffi.new("int32_t *"), ffi.new("char **")
    assert lib.mdrt_get_component_count(model, count) == OK
    names = []
    for index in range(count[0]):
        assert lib.mdrt_get_component_name(model, index, name) == OK
        names.append(ffi.string(name[0]).decode())
    assert {"text_encoder", "unet", "vae_decoder"} <= set(names)
    for index in (-1, count[0]):
        assert lib.mdrt_get_component_name(model, index, name) == ARGUMENT


def test_inputs_and_outputs(lib, model):
    described = ffi.new("mdrt_tensor *")
    found = {}
    for index in range(3):
        assert lib.mdrt_get_input(model, b"unet", index, described) == OK
        found[ffi.string(described.name)] = (described.dtype, list(described.shape[0 : described.rank]))
    assert found[b"sample"] == (0, [0, 0, 0, 8])
    assert found[b"timestep"] == (0, [0])
    assert found[b"encoder_hidden_states"] == (0, [0, 0, 192])
    assert lib.mdrt_get_input(model, b"unet", 3, described) == ARGUMENT
    assert lib.mdrt_get_input(model, b"text_encoder", 0, described) == OK
    assert (ffi.string(described.name), described.dtype, described.rank) == (b"input_ids", 1, 2)
    assert lib.mdrt_get_output(model, b"vae_decoder", 0, described) == OK
    assert (ffi.string(described.name), list(described.shape[0:4])) == (b"sample", [0, 0, 0, 3])
    assert lib.mdrt_get_output(model, b"vae_decoder", -1, described) == ARGUMENT
    assert lib.mdrt_get_output(model, b"nothing", 0, described) == ARGUMENT
    assert "unet" in message(lib, model)


# Running a component


def test_run_tells_shapes_then_computes(lib, model):
    given = [tensor(b"input_ids", ids(batch=2))]
    shaped = [tensor(b"input_ids", ids(batch=2), data=ffi.NULL, size_bytes=0)]
    assert run(lib, model, b"text_encoder", shaped, [tensor(b"last_hidden_state")]) == (OK, [[2, 24, 192]])
    out = np.zeros((2, 24, 192), dtype=np.float32)
    assert run(lib, model, b"text_encoder", given, [tensor(b"last_hidden_state", out)]) == (OK, [[2, 24, 192]])
    assert out.std() > 0.1
    np.testing.assert_array_equal(out[0], out[1])
    expected = _core.Model(models.builtin_path()).run(
        "text_encoder", {"input_ids": ids(batch=2)}, ["last_hidden_state"]
    )
    np.testing.assert_array_equal(out, expected["last_hidden_state"])


def test_run_gives_inner_values_inputs_and_repeats(lib, model):
    sample = np.random.default_rng(0).standard_normal((1, 9, 13, 8)).astype(np.float32)
    inputs = [tensor(b"latent_sample", sample)]
    status, shapes = run(lib, model, b"vae_decoder", inputs, [tensor(b"sample"), tensor(b"decoder.conv_in")])
    assert status == OK, message(lib, model)
    assert shapes[0] == [1, 72, 104, 3] and shapes[1][:3] == [1, 9, 13]
    image, again = (np.zeros(shapes[0], dtype=np.float32) for _ in range(2))
    inner, echo = np.zeros(shapes[1], dtype=np.float32), np.zeros_like(sample)
    wanted = [
        tensor(b"sample", image),
        tensor(b"decoder.conv_in", inner),
        tensor(b"latent_sample", echo),
        tensor(b"sample", again),
    ]
    assert run(lib, model, b"vae_decoder", inputs, wanted)[0] == OK
    assert inner.std() > 0
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(echo, sample)


def test_run_that_only_repeats_an_input(lib, model):
    echo = np.zeros((1, 24), dtype=np.float32)
    assert run(lib, model, b"text_encoder", [tensor(b"input_ids", ids())], [tensor(b"input_ids", echo)]) == (
        OK,
        [[1, 24]],
    )
    assert (echo == 5).all()


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        (list, None, "needs the input input_ids"),
        (lambda: [tensor(b"ids", ids())], None, "needs the input input_ids"),
        (lambda: [tensor(b"input_ids", ids()), tensor(b"more", ids())], None, "takes 1"),
        (lambda: [tensor(b"input_ids", ids()), tensor(b"input_ids", ids())], None, "given twice"),
        (lambda: [tensor(b"input_ids", ids().astype(np.float32))], None, "must have dtype int32"),
        (lambda: [tensor(b"input_ids", ids(), rank=0)], None, "has rank 0"),
        (lambda: [tensor(b"input_ids", ids(), rank=7)], None, "has rank 7"),
        (lambda: [tensor(b"input_ids", ids()[0])], None, "input_ids"),
        (lambda: [tensor(b"input_ids", ids(), shape=[1, 0, 0, 0, 0, 0])], None, "dimension of 0"),
        (lambda: [tensor(b"input_ids", ids(), shape=[1, -1, 0, 0, 0, 0])], None, "dimension of -1"),
        (lambda: [tensor(b"input_ids", ids(), shape=[2**62, 2**62, 0, 0, 0, 0])], None, "63 bits"),
        (lambda: [tensor(b"input_ids", ids(), size_bytes=95)], None, "size_bytes is 95"),
        (lambda: [tensor(b"input_ids", ids(), data=ffi.NULL)], None, "data of input input_ids is NULL"),
        (lambda: [tensor(b"input_ids", ids(length=25))], None, "25"),
        (lambda: [tensor(b"input_ids", ids(value=-1))], None, "holds -1"),
        (lambda: [tensor(b"input_ids", ids(value=2048))], None, "holds 2048"),
        (lambda: [tensor(b"input_ids", ids())], [], "no output"),
        (lambda: [tensor(b"input_ids", ids())], [(b"nothing", (1, 24, 192), {})], "nothing"),
        (lambda: [tensor(b"input_ids", ids())], [(b"last_hidden_state", (1, 24, 192), {"dtype": 1})], "MDRT_FP32"),
        (lambda: [tensor(b"input_ids", ids())], [(b"last_hidden_state", (1, 24, 191), {})], "needs 18432 bytes"),
    ],
)
def test_run_refuses(lib, model, inputs, outputs, words):
    if outputs is None:
        outputs = [(b"last_hidden_state", (1, 24, 192), {})]
    wanted = [tensor(name, np.zeros(shape, dtype=np.float32), **settings) for name, shape, settings in outputs]
    assert run(lib, model, b"text_encoder", inputs(), wanted)[0] == ARGUMENT
    assert words in message(lib, model)
    assert generate(lib, model, seed=1)[0] == OK


def test_tensors_without_a_name(lib, model):
    unnamed = ffi.new("mdrt_tensor *"), []
    out = tensor(b"last_hidden_state", np.zeros((1, 24, 192), dtype=np.float32))
    assert run(lib, model, b"text_encoder", [unnamed], [out])[0] == ARGUMENT
    assert "name of an input is NULL" in message(lib, model)
    assert run(lib, model, b"text_encoder", [tensor(b"input_ids", ids())], [unnamed])[0] == ARGUMENT
    assert "name of an output is NULL" in message(lib, model)


# From prompt to picture


def test_stride(lib, model, tiger):
    status, pixels = generate(lib, model, stride=3 * SIDE + 5, seed=1)
    assert status == OK
    np.testing.assert_array_equal(pixels[:, : 3 * SIDE], tiger)
    assert (pixels[:, 3 * SIDE :] == 7).all()
    status, pixels = generate(lib, model, stride=3 * SIDE - 1, seed=1)
    assert status == ARGUMENT
    assert "stride_bytes is 383" in message(lib, model)
    assert (pixels == 7).all()


def test_begin_advance_end(lib, model, tiger):
    status, job = begin(lib, model, seed=1)
    assert status == OK
    event, fractions = ffi.new("mdrt_event *"), []
    while event.stage != DONE:
        assert lib.mdrt_advance(job, event) == OK
        fractions.append(event.fraction)
        assert event.total == 1
    assert fractions == sorted(fractions) and fractions[-1] == 1
    pixels, shape = np.zeros((SIDE, 3 * SIDE), dtype=np.uint8), ffi.new("int64_t[4]")
    assert lib.mdrt_get_pixels(job, ffi.from_buffer("uint8_t[]", pixels), 3 * SIDE) == OK
    np.testing.assert_array_equal(pixels, tiger)
    assert lib.mdrt_get_latents_shape(job, shape) == OK
    assert list(shape) == [1, 8, 16, 16]
    latents = np.zeros(2048, dtype=np.float32)
    pointer = ffi.from_buffer("float[]", latents)
    assert lib.mdrt_get_latents(job, pointer, 2048) == OK
    assert 0.3 < latents.std() < 3
    assert lib.mdrt_get_latents(job, pointer, 2047) == ARGUMENT
    assert lib.mdrt_get_latents(job, ffi.NULL, 2048) == ARGUMENT
    assert lib.mdrt_get_pixels(job, ffi.NULL, 3 * SIDE) == ARGUMENT
    assert lib.mdrt_advance(job, event) == STATE
    lib.mdrt_end(job)


def test_calls_out_of_order(lib, model, tiger):
    status, job = begin(lib, model, seed=1)
    assert status == OK
    pixels, latents = np.zeros((SIDE, 3 * SIDE), dtype=np.uint8), np.zeros(2048, dtype=np.float32)
    assert lib.mdrt_get_pixels(job, ffi.from_buffer("uint8_t[]", pixels), 3 * SIDE) == STATE
    assert lib.mdrt_get_latents(job, ffi.from_buffer("float[]", latents), 2048) == STATE
    assert lib.mdrt_advance(job, ffi.NULL) == ARGUMENT
    status, second = begin(lib, model)
    assert (status, second) == (STATE, ffi.NULL)
    assert "unfinished" in message(lib, model)
    assert generate(lib, model)[0] == STATE
    assert run(lib, model, b"text_encoder", [tensor(b"input_ids", ids())], [tensor(b"last_hidden_state")])[0] == STATE
    finish(lib, job)
    assert lib.mdrt_get_pixels(job, ffi.from_buffer("uint8_t[]", pixels), 3 * SIDE) == OK
    np.testing.assert_array_equal(pixels, tiger)
    assert generate(lib, model)[0] == OK
    lib.mdrt_end(job)


def test_job_that_is_dropped_half_way(lib, model, tiger):
    for _ in range(3):
        _, job = begin(lib, model, seed=1)
        assert lib.mdrt_advance(job, ffi.new("mdrt_event *")) == OK
        lib.mdrt_end(job)
    np.testing.assert_array_equal(generate(lib, model, seed=1)[1], tiger)


def test_jobs_outlive_their_model(lib, path, tiger):
    _, opened, _ = open_model(lib, path)
    _, done = begin(lib, opened, seed=1)
    finish(lib, done)
    _, begun = begin(lib, opened, seed=1)
    lib.mdrt_close(opened)
    assert lib.mdrt_advance(begun, ffi.new("mdrt_event *")) == STATE
    pixels = np.zeros((SIDE, 3 * SIDE), dtype=np.uint8)
    assert lib.mdrt_get_pixels(done, ffi.from_buffer("uint8_t[]", pixels), 3 * SIDE) == OK
    np.testing.assert_array_equal(pixels, tiger)
    lib.mdrt_end(begun)
    lib.mdrt_end(done)


def test_latent_only(lib, model):
    status, job = begin(lib, model, seed=1, latent_only=1)
    assert status == OK
    finish(lib, job)
    pixels, latents = np.zeros((SIDE, 3 * SIDE), dtype=np.uint8), np.zeros(2048, dtype=np.float32)
    assert lib.mdrt_get_pixels(job, ffi.from_buffer("uint8_t[]", pixels), 3 * SIDE) == STATE
    assert "latent_only" in message(lib, model)
    assert lib.mdrt_get_latents(job, ffi.from_buffer("float[]", latents), 2048) == OK
    lib.mdrt_end(job)
    assert generate(lib, model, latent_only=1)[0] == ARGUMENT


def test_latents_and_schedule_of_the_caller(lib, model, tiger):
    noise = _core.philox_normal(1, 0, 2048)
    np.testing.assert_array_equal(generate(lib, model, seed=99, latents=noise)[1], tiger)
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}
    config |= {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    rows = schedulers.make_rows(config, "ddim", 1).rows
    np.testing.assert_array_equal(generate(lib, model, seed=1, schedule=rows, schedule_rows=1)[1], tiger)


def test_prompts_and_seeds_matter(lib, model, tiger):
    for settings in ({"seed": 2}, {"prompt": b"red apple", "seed": 1}, {"num_inference_steps": 8, "seed": 1}):
        status, pixels = generate(lib, model, **settings)
        assert status == OK
        assert (pixels != tiger).any()
    eight = {"num_inference_steps": 8, "seed": 1}
    empty, blue = (generate(lib, model, negative_prompt=p, guidance_scale=2.0, **eight)[1] for p in (b"", b"blue"))
    assert (empty != blue).any()
    plain, also_plain = (generate(lib, model, guidance_scale=scale, **eight)[1] for scale in (1.0, 0.5))
    np.testing.assert_array_equal(plain, also_plain)


NAN_NOISE = np.full(2048, np.nan, dtype=np.float32)
NAN_ROW = np.full((1, 14), np.nan)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"struct_size": 8}, "params.struct_size"),
        ({"prompt": b"\xff\xfe"}, "UTF-8"),
        ({"negative_prompt": b"\xc3", "guidance_scale": 2.0}, "UTF-8"),
        ({"width": 100}, "width is 100, but must be a multiple of 8; the nearest is 104"),
        ({"height": 3}, "the nearest is 8"),
        ({"width": -8}, "width is -8"),
        ({"num_inference_steps": -1}, "num_inference_steps is -1"),
        ({"num_inference_steps": 7}, "no schedule for 7 steps is stored"),
        ({"guidance_scale": math.inf}, "guidance_scale"),
        ({"schedule_rows": 3}, "schedule and schedule_rows"),
        ({"schedule": NAN_ROW}, "schedule and schedule_rows"),
        ({"schedule": NAN_ROW, "schedule_rows": -1}, "schedule_rows is -1"),
        ({"schedule": NAN_ROW, "schedule_rows": 1}, "row 0"),
        ({"latents": NAN_NOISE}, "latents hold NaN"),
    ],
)
def test_parameters_that_are_refused(lib, model, tiger, settings, words):
    status, _ = generate(lib, model, **settings)
    assert status == ARGUMENT
    assert words in message(lib, model)
    np.testing.assert_array_equal(generate(lib, model, seed=1)[1], tiger)


def test_null_prompt(lib, model):
    given, _kept = params(lib)
    given.prompt = ffi.NULL
    job = ffi.new("mdrt_job **")
    assert lib.mdrt_begin(model, given, job) == ARGUMENT
    assert "prompt is NULL" in message(lib, model)


@pytest.mark.parametrize("side", [2**14, 2**20, 2**31 - 8])
def test_sizes_beyond_memory(lib, path, side):
    _, opened, _ = open_model(lib, path, max_memory_bytes=10**9)
    status, job = begin(lib, opened, width=side, height=side)
    assert job == ffi.NULL
    assert status in (MEMORY, ARGUMENT)
    if side == 2**14:
        assert status == MEMORY
        assert re.search(r"needs [\d.]+ MB.*limit is 1000.0 MB", message(lib, opened))
    assert generate(lib, opened, seed=1)[0] == OK
    lib.mdrt_close(opened)


def test_what_does_not_fit_is_done_in_strips(lib, tmp_path):
    file, generator = tmp_path / "net.mdrt", np.random.default_rng(1)
    file.write_bytes(test_memory.bundle(test_memory.network(), test_memory.RANGE).tobytes())
    x = generator.standard_normal((1, 96, 80, 24)).astype(np.float32)
    time = generator.standard_normal((1, 20)).astype(np.float32)
    results = []
    needed = None
    for limit in (10**9, 1, None):
        _, opened, _ = open_model(lib, str(file).encode(), max_memory_bytes=limit or needed)
        out = np.zeros((1, 96, 80, 16), np.float32)
        status, _ = run(lib, opened, b"net", [tensor(b"x", x), tensor(b"time", time)], [tensor(b"y", out)])
        if limit == 1:
            assert status == MEMORY
            needed = round(float(re.search(r"needs ([\d.]+) MB", message(lib, opened))[1]) * 1e6) + 60_000
        else:
            assert status == OK
            results.append(out)
        lib.mdrt_close(opened)
    np.testing.assert_array_equal(results[0].view(np.uint32), results[1].view(np.uint32))


def test_values_that_are_not_finite(lib, model, tiger):
    row = np.zeros((1, 14))
    row[0, 4] = 1e300
    assert generate(lib, model, schedule=row, schedule_rows=1)[0] == NUMERIC
    np.testing.assert_array_equal(generate(lib, model, seed=1)[1], tiger)


# Cancelling


def test_callback_cancels(lib, model, tiger):
    seen = []

    @ffi.callback("mdrt_callback")
    def stop_later(event, user):
        seen.append(event.fraction)
        return int(event.fraction > 0.3)

    assert generate(lib, model, stop_later, seed=1)[0] == CANCELLED
    assert 0.3 < seen[-1] < 1 and all(fraction <= 0.3 for fraction in seen[:-1])
    assert "cancelled" in message(lib, model)
    np.testing.assert_array_equal(generate(lib, model, seed=1)[1], tiger)


def test_cancel_between_advances(lib, model, tiger):
    _, job = begin(lib, model, seed=1)
    event = ffi.new("mdrt_event *")
    assert lib.mdrt_advance(job, event) == OK
    lib.mdrt_cancel(model)
    assert lib.mdrt_advance(job, event) == CANCELLED
    assert lib.mdrt_advance(job, event) == STATE
    np.testing.assert_array_equal(generate(lib, model, seed=1)[1], tiger)
    lib.mdrt_end(job)


def test_cancel_without_a_call_has_no_effect(lib, model, tiger):
    lib.mdrt_cancel(model)
    np.testing.assert_array_equal(generate(lib, model, seed=1)[1], tiger)
    lib.mdrt_cancel(model)
    _, job = begin(lib, model, seed=1)
    finish(lib, job)
    lib.mdrt_end(job)
    lib.mdrt_cancel(model)
    out = np.zeros((1, 24, 192), dtype=np.float32)
    assert run(lib, model, b"text_encoder", [tensor(b"input_ids", ids())], [tensor(b"last_hidden_state", out)])[0] == OK


def test_cancel_from_another_thread(lib, model, tiger):
    rows = np.repeat(schedulers.make_rows({}, "ddim", 1).rows, 5000, axis=0)
    timer = threading.Timer(0.2, lib.mdrt_cancel, [model])
    timer.start()
    begun = time.monotonic()
    status, _ = generate(lib, model, schedule=rows, schedule_rows=5000, guidance_scale=1)
    timer.join()
    assert status == CANCELLED
    assert time.monotonic() - begun < 2
    np.testing.assert_array_equal(generate(lib, model, seed=1)[1], tiger)


# Several callers


def test_callback_cannot_call_its_model(lib, model, tiger):
    statuses = []

    @ffi.callback("mdrt_callback")
    def call_back(event, user):
        statuses.append(lib.mdrt_verify(model))
        return 0

    np.testing.assert_array_equal(generate(lib, model, call_back, seed=1)[1], tiger)
    assert set(statuses) == {STATE}


def test_second_caller_waits(lib, model, tiger):
    results = []
    threads = [threading.Thread(target=lambda: results.append(generate(lib, model, seed=1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in results] == [OK] * 4
    for _, pixels in results:
        np.testing.assert_array_equal(pixels, tiger)


# The C example and the symbols


def test_c_example(path, tmp_path):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: the C example is not compiled")
    library, program = Path(mdrt.get_library()), tmp_path / "generate"
    source = ROOT / "examples" / "generate.c"
    flags = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror", f"-I{mdrt.get_include()}"]
    link = [str(library), f"-Wl,-rpath,{library.parent}"]
    subprocess.run([compiler, *flags, str(source), "-o", str(program), *link], check=True)
    made = subprocess.run([str(program), path.decode(), PROMPT.decode(), str(tmp_path / "tiger.ppm")], check=False)
    assert made.returncode == 0
    header, pixels = (tmp_path / "tiger.ppm").read_bytes().split(b"\n", 1)
    assert header == b"P6 128 128 255"
    assert len(pixels) == SIDE * SIDE * 3
    refused = subprocess.run([str(program), "nothing.mdrt", "x", "y"], check=False, capture_output=True, text=True)
    assert refused.returncode == 1 and "nothing.mdrt" in refused.stderr


def test_only_the_interface_is_exported():
    if shutil.which("nm") is None:
        pytest.skip("no nm: the exported symbols are not listed")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", mdrt.get_library()], check=True, capture_output=True, text=True
    ).stdout
    exported = {line.split()[-1] for line in listed.splitlines()}
    declared = set(re.findall(r"\b(mdrt_\w+)\(", declarations()))
    assert {name for name in exported if not name.startswith("_")} == declared | {"mdrt_internal"}
