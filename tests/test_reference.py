"""The micro checkpoints against the arrays that PyTorch, transformers and diffusers made from them."""

import functools
from pathlib import Path

import numpy as np
import pytest

from mdrt import _core
from mdrt.interpreter import Interpreter
from weights_tools.checkpoint import Checkpoint
from weights_tools.components import load_networks

DATA = Path(__file__).parent / "data"
MODELS = ["micro-a", "micro-b"]
ISAS = [isa["name"] for isa in _core.build_info()["isas"] if isa["usable"]]
BACKENDS = ["reference", *(f"fp32-{isa}" for isa in ISAS), *(f"fp16-{isa}" for isa in ISAS)]
# Relative RMSE. The second is for the autoencoder's networks.
TOLERANCES = {"reference": (5e-6, 5e-6), "fp32": (1e-5, 1e-5), "fp16": (3e-3, 5e-3)}


@functools.cache
def networks(model):
    return load_networks(Checkpoint(DATA / model), with_encoder=True).components


@functools.cache
def golden(model):
    with np.load(DATA / model / "golden.npz") as arrays:
        return dict(arrays)


@functools.cache
def interpreter(model, component, backend):
    network = networks(model)[component]
    if backend == "reference":
        return Interpreter(network.graph, network.weights, "reference")
    format, isa = backend.split("-")
    return Interpreter(network.graph, network.weights, threads=2, format=format, isa=isa)


def tolerance(backend, component="unet"):
    return TOLERANCES[backend.split("-")[0]][component.startswith("vae")]


def nhwc(array):
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def relative_rmse(x, expected):
    expected = expected.astype(np.float64)
    assert x.shape == expected.shape
    return float(np.sqrt(np.mean((x - expected) ** 2) / np.mean(expected**2)))


def run_unet(model, backend, sample, timestep, text, outputs=None):
    feeds = {
        "sample": nhwc(sample),
        "timestep": np.full(len(sample), timestep, np.float32),
        "encoder_hidden_states": text,
    }
    return interpreter(model, "unet", backend).run(feeds, outputs)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("model", MODELS)
class TestGolden:
    def test_text_embeddings(self, model, backend):
        arrays = golden(model)
        result = interpreter(model, "text_encoder", backend).run({"input_ids": arrays["prompt_ids"]})
        assert relative_rmse(result["last_hidden_state"], arrays["text_embeddings"]) <= tolerance(backend)

    @pytest.mark.parametrize("timestep", [999, 500, 1])
    def test_unet_batch_of_two(self, model, backend, timestep):
        arrays = golden(model)
        result = run_unet(model, backend, arrays["unet_sample"], timestep, arrays["text_embeddings"][:2])
        expected = nhwc(arrays[f"unet_out_t{timestep}"])
        assert relative_rmse(result["out_sample"], expected) <= tolerance(backend)

    @pytest.mark.parametrize("shape", ["rect", "odd"])
    def test_unet_of_other_shapes(self, model, backend, shape):
        arrays = golden(model)
        result = run_unet(model, backend, arrays[f"unet_{shape}_sample"], 500, arrays["text_embeddings"][:1])
        expected = nhwc(arrays[f"unet_{shape}_out_t500"])
        assert relative_rmse(result["out_sample"], expected) <= tolerance(backend)

    def test_unet_inner_activations(self, model, backend):
        arrays = golden(model)
        names = [key.removeprefix("act/") for key in arrays if key.startswith("act/")]
        assert len(names) > 30
        results = run_unet(model, backend, arrays["unet_sample"][:1], 500, arrays["text_embeddings"][:1], names)
        for name in names:
            assert relative_rmse(results[name], nhwc(arrays[f"act/{name}"])) <= tolerance(backend), name

    def test_vae_decoder(self, model, backend):
        arrays = golden(model)
        result = interpreter(model, "vae_decoder", backend).run({"latent_sample": nhwc(arrays["vae_latent"])})
        assert relative_rmse(result["sample"], nhwc(arrays["vae_decoded"])) <= tolerance(backend, "vae_decoder")

    def test_vae_encoder(self, model, backend):
        arrays = golden(model)
        result = interpreter(model, "vae_encoder", backend).run({"sample": nhwc(arrays["vae_image"])})
        expected = nhwc(arrays["vae_encoded_mean"])
        mean = result["latent_parameters"][..., : expected.shape[-1]]
        assert relative_rmse(mean, expected) <= tolerance(backend, "vae_encoder")
