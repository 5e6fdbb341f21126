"""Writes checkpoints of the canonical sizes with random weights, so that anybody can measure and export."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import FileError, InvalidArgumentError, WriteError
from mdrt.graph import Graph, Weight
from weights_tools.checkpoint import Config, make_config
from weights_tools.components import check_graph
from weights_tools.pipeline_files import block_types, config_head, weights_stem, write_config, write_index, write_json
from weights_tools.text_encoder import TextEncoderConfig, build_text_encoder
from weights_tools.unet import UNetConfig, build_unet
from weights_tools.vae import VaeConfig, build_vae_decoder, build_vae_encoder
from weights_tools.vocabulary import byte_symbols, read_vocabulary

_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_NUM_MERGES = 48894
_TOKENIZER_FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_DTYPES = {"fp32": ("F32", np.float32), "fp16": ("F16", np.float16)}

_TEXT_ENCODER = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
_VAE = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64, 96, 192, 256],
    "layers_per_block": 2,
    "latent_channels": 8,
    "norm_num_groups": 32,
    "mid_block_add_attention": False,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "scaling_factor": 0.18215,
    "shift_factor": None,
}
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
}
_PRESETS: dict[str, dict[str, Any]] = {
    "mobilediffusion": {},
    "mobilediffusion-lite": {"transformer_layers_per_block": [0, 1, 2, 2]},
}
PRESETS = tuple(_PRESETS)


def new(
    output: str | os.PathLike[str],
    *,
    preset: str = "mobilediffusion",
    settings: Mapping[str, Any] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    dtype: str = "fp16",
    seed: int = 0,
) -> None:
    """Writes a diffusers pipeline directory with random weights: normal numbers scaled so that activations stay near 1.

    Args:
        output: the directory to make; it must not exist or be empty.
        preset: "mobilediffusion" or "mobilediffusion-lite".
        settings: changed configuration values by key, such as `block_out_channels` of the UNet, or component and key:
            `vae.latent_channels`, `text_encoder.hidden_size`, `scheduler.prediction_type`.
        tokenizer: a folder whose tokenizer is copied; None: a made-up byte-level vocabulary of 49,408 entries.
        dtype: "fp32" or "fp16", how weights are stored.
        seed: of the random numbers.

    Raises:
        InvalidArgumentError: an unknown preset, setting or dtype.
        ConversionError: the tokenizer is unusable, or settings contradict each other.
        FileError: the directory is not empty or cannot be written.
    """
    if preset not in _PRESETS:
        raise InvalidArgumentError(f"there is no preset {preset!r}; there are {', '.join(_PRESETS)}")
    if dtype not in _DTYPES:
        raise InvalidArgumentError(f"dtype {dtype!r} is not one of {', '.join(_DTYPES)}")
    configs = _configs(preset, settings or {}, None if tokenizer is None else Path(tokenizer))
    components = _graphs(configs)
    try:
        with _new_directory(Path(output)) as folder:
            _write_configs(folder, configs)
            _write_tokenizer(
                folder / "tokenizer", configs["text_encoder"], None if tokenizer is None else Path(tokenizer)
            )
            generator = np.random.default_rng(seed)
            for component, graphs in components.items():
                weights = {name: weight for graph in graphs for name, weight in graph.weights.items()}
                _write_weights(folder / component / f"{weights_stem(component)}.safetensors", weights, dtype, generator)
    except OSError as error:
        raise WriteError(f"cannot write {output}: {error.strerror or error}") from error


def canonical_graphs(preset: str) -> dict[str, Graph]:
    """The graphs of a preset: text_encoder, unet, vae_encoder, vae_decoder."""
    components = _graphs(_configs(preset, {}, None))
    names = ("text_encoder", "unet", "vae_encoder", "vae_decoder")
    return dict(zip(names, (graph for graphs in components.values() for graph in graphs), strict=True))


def _configs(preset: str, settings: Mapping[str, Any], tokenizer: Path | None) -> dict[str, dict[str, Any]]:
    """The configuration files, by component."""
    unet = dataclasses.asdict(UNetConfig()) | _PRESETS[preset]
    configs = {
        component: config_head(component) | keys
        for component, keys in {
            "unet": unet,
            "vae": _VAE,
            "text_encoder": _TEXT_ENCODER,
            "scheduler": SCHEDULER,
        }.items()
    }
    if tokenizer is not None:
        vocabulary = read_vocabulary(tokenizer, 1 << 20)
        configs["text_encoder"]["vocab_size"] = len(vocabulary.tokens)
        configs["text_encoder"]["max_position_embeddings"] = min(vocabulary.model_max_length, 4096)
    for key, value in settings.items():
        component, _, name = key.rpartition(".")
        component = component or "unet"
        if component not in configs or name not in configs[component] or name.startswith("_"):
            raise InvalidArgumentError(
                f"there is no setting {key!r}; settings are such as block_out_channels or vae.latent_channels"
            )
        configs[component][name] = value
    configs["vae"] |= block_types(len(configs["vae"]["block_out_channels"]))
    return configs


def _graphs(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Graph]]:
    """The graphs whose weights a component's file holds."""

    def config(component: str, cls: type[Config]) -> Config:
        fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        values = {key: value for key, value in configs[component].items() if key in fields}
        return make_config(cls, values, f"{component} settings")

    vae = config("vae", VaeConfig)
    components = {
        "text_encoder": [build_text_encoder(config("text_encoder", TextEncoderConfig))],
        "unet": [build_unet(config("unet", UNetConfig))],
        "vae": [build_vae_encoder(vae), build_vae_decoder(vae)],
    }
    for component, graphs in components.items():
        for graph in graphs:
            check_graph(graph, component)
    return components


def _write_configs(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> None:
    write_index(folder, ("unet", "vae", "text_encoder", "tokenizer", "scheduler"))
    for component, config in configs.items():
        write_config(folder, component, config)


def _write_tokenizer(folder: Path, text_encoder: Mapping[str, Any], source: Path | None) -> None:
    folder.mkdir()
    if source is not None:
        for name in _TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        return
    tokens, merges = _made_up_vocabulary()
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(tokens)})
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {f"{name}_token": _SPECIAL[name != "bos"] for name in ("bos", "eos", "pad", "unk")}
    length = text_encoder["max_position_embeddings"]
    write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}
    )


def _made_up_vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges: bytes, then chains of two, three and four letters, then the two special tokens."""
    symbols = sorted(byte_symbols())
    merges = list(itertools.islice(_made_up_merges(), _NUM_MERGES))
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + [left + right for left, right in merges]
    return [*tokens, *_SPECIAL], merges


def _made_up_merges() -> Iterator[tuple[str, str]]:
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    for length in (1, 2, 3):
        for chain in map("".join, itertools.product(letters, repeat=length)):
            for letter in letters:
                yield chain, letter
                yield chain, f"{letter}</w>"


def _write_weights(path: Path, weights: Mapping[str, Weight], dtype: str, generator: np.random.Generator) -> None:
    """A safetensors file, made tensor by tensor."""
    name, numpy_dtype = _DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for weight in weights.values():
        size_bytes = math.prod(weight.shape) * np.dtype(numpy_dtype).itemsize
        header[weight.name] = {
            "dtype": name,
            "shape": _file_shape(weight),
            "data_offsets": [offset, offset + size_bytes],
        }
        offset += size_bytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for weight in weights.values():
            file.write(_random_weight(weight, generator).astype(numpy_dtype).tobytes())


def _file_shape(weight: Weight) -> list[int]:
    if weight.kind == "depthwise":
        return [weight.shape[0], 1, *weight.shape[1:]]
    return list(weight.shape)


def _random_weight(weight: Weight, generator: np.random.Generator) -> NDArray[np.float32]:
    """Biases 0, scales of norms 1, all else normal: tables with deviation 1, the rest 1 / sqrt(inputs of an output)."""
    if weight.kind == "vector":
        return np.full(weight.shape, 0.0 if weight.name.endswith(".bias") else 1.0, dtype=np.float32)
    inputs = 1 if weight.kind == "table" else math.prod(weight.shape[1:])
    weights = generator.standard_normal(weight.shape, dtype=np.float32)
    weights *= np.float32(1.0 / math.sqrt(inputs))
    return weights


@contextlib.contextmanager
def _new_directory(path: Path) -> Iterator[Path]:
    """A folder beside `path` that becomes `path` when all went well, and vanishes otherwise."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileError(f"{path} exists and is not an empty directory; name a new one")
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if path.exists():
            path.rmdir()
        folder.rename(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
