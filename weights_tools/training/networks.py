"""Text encoder and UNet of a training: made, loaded, started from others, and written as a pipeline directory."""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from weights_tools.checkpoint import Checkpoint
from weights_tools.modules import (
    CLIPTextModel,
    MobileDiffusionUNet2DConditionModel,
    load_decoder,
    load_text_encoder,
    load_unet,
)
from weights_tools.new import SCHEDULER
from weights_tools.pipeline_files import config_head
from weights_tools.training.light import Part, write_pipeline
from weights_tools.training.stage import Context
from weights_tools.training.tokenizer import Tokenizer
from weights_tools.vocabulary import read_vocabulary

TOKENIZER = "tokenizer"
AUTOENCODER = Path("latents", "light")
_TEXT_PREFIX = "text_model."
_TOKENS = "embeddings.token_embedding.weight"
_POSITIONS = "embeddings.position_embedding.weight"


class TextToLatents(nn.Module):
    """A text encoder and a UNet: forward takes noisy latents, timesteps and ids, and returns v as float32."""

    def __init__(self, text_encoder: CLIPTextModel, unet: MobileDiffusionUNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder, self.unet = text_encoder, unet

    def forward(self, noisy: Tensor, timestep: Tensor, input_ids: Tensor) -> Tensor:
        return self.unet(noisy, timestep, self.text_encoder(input_ids)).float()


def load(path: Path) -> TextToLatents:
    """Both networks of a pipeline directory in float32; errors as `load_unet`."""
    return TextToLatents(load_text_encoder(path), load_unet(path))


def autocast(device: str, is_wanted: bool = True, cache_enabled: bool = True) -> torch.autocast:
    """bfloat16 for what bears it, on GPUs and on CPUs with AMX; other CPUs lose time by it."""
    kind = device.split(":", maxsplit=1)[0]
    is_faster = kind == "cuda" or (kind == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False))
    return torch.autocast(kind, torch.bfloat16, enabled=is_wanted and is_faster, cache_enabled=cache_enabled)


def to_device(array: Tensor | NDArray[Any], device: str | torch.device) -> Tensor:
    """A tensor on a device; an accelerator need not have caught up with what was asked of it before."""
    tensor = torch.as_tensor(array)
    return tensor if torch.device(device).type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def start_from(model: TextToLatents, path: Path, tokenizer: Path, fresh: tuple[str, ...] = ()) -> int:
    """Takes over all weights of a pipeline directory that fit; returns how many tensors did.

    Words of both vocabularies keep their embeddings. Another number of channels, or a level that is not there, leaves
    tensors as they are, and so do names that begin with one of `fresh`.

    Raises:
        FileError, ConversionError: the directory or a file is missing or unusable.
    """
    checkpoint = Checkpoint(path)
    parts: dict[str, nn.Module] = {"text_encoder": model.text_encoder, "unet": model.unet}
    count = 0
    for component, module in parts.items():
        files = checkpoint.weights(component)
        sources = {name.removeprefix(_TEXT_PREFIX): name for name in files}
        for name, parameter in module.named_parameters():
            if name not in sources or (component == "unet" and name.startswith(fresh or ("\0",))):
                continue
            value = torch.from_numpy(files.read(sources[name]))
            if name == _TOKENS:
                count += _take_words(parameter, value, path / TOKENIZER, tokenizer)
            elif name == _POSITIONS or value.shape == parameter.shape:
                length = min(len(value), len(parameter))
                if value.shape[1:] == parameter.shape[1:]:
                    parameter.data[:length] = value[:length]
                    count += 1
    return count


def _take_words(parameter: Tensor, value: Tensor, old: Path, new: Path) -> bool:
    if value.shape[1:] != parameter.shape[1:]:
        return False
    rows = {token: row for row, token in enumerate(read_vocabulary(old, 1 << 16).tokens)}
    for row, token in enumerate(read_vocabulary(new, 1 << 16).tokens):
        if token in rows:
            parameter.data[row] = value[rows[token]]
    return True


def write_light(context: Context, model: TextToLatents) -> None:
    """Writes `light` of a stage: the networks, with the run's tokenizer and decoder, in 16 bits."""
    autoencoder = context.folder / AUTOENCODER
    text_encoder = config_head("text_encoder")
    vocabulary = read_vocabulary(context.folder / TOKENIZER, 1 << 16)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        text_encoder[name] = getattr(vocabulary, name)
    unet = config_head("unet") | asdict(model.unet.config)
    parts = {
        "text_encoder": Part(text_encoder | asdict(model.text_encoder.config), model.text_encoder.state_dict()),
        "unet": Part(unet, model.unet.state_dict()),
        "vae": Part(Checkpoint(autoencoder).json("vae/config.json"), load_decoder(autoencoder).state_dict()),
        "scheduler": Part(config_head("scheduler") | SCHEDULER),
    }
    write_pipeline(context.output / "light", parts, context.folder / TOKENIZER)


def empty_ids(folder: Path) -> Tensor:
    """The ids of the empty caption, (1, length) int64, by the tokenizer of a run or pipeline directory."""
    return torch.from_numpy(Tokenizer(folder / TOKENIZER).encode([""])).long()
