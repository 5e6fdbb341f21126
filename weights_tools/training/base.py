"""The stages `base` and `relu`: text encoder and UNet learn together to predict v.

Large timesteps are drawn more often: t = 1000 u^0.75. Some captions are left out, so that guidance can be used. `relu`
is the same finetuning of a finished model with another `attention_fn`.
"""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from mdrt.errors import ConversionError
from weights_tools.modules import CLIPTextModel, MobileDiffusionUNet2DConditionModel
from weights_tools.text_encoder import TextEncoderConfig
from weights_tools.training import workers
from weights_tools.training.diffusion import NUM_TRAIN_TIMESTEPS, Diffusion
from weights_tools.training.muon import muon_and_adamw
from weights_tools.training.networks import (
    TOKENIZER,
    TextToLatents,
    autocast,
    empty_ids,
    start_from,
    to_device,
    write_light,
)
from weights_tools.training.pool import FILE_NAME, KINDS, Pool, read_pool
from weights_tools.training.stage import Context, LoopConfig, State, train
from weights_tools.training.tokenizer import Tokenizer
from weights_tools.unet import UNetConfig

_TIMESTEP_POWER = 0.75
_SMALLEST_SQUARE = 1e-5  # far below what any trained model reaches: the slope of a root has an end


@dataclass(frozen=True)
class DiffusionTraining(LoopConfig):
    """What all stages on latents have: `chances` says how often each of `kinds` of the pool is drawn."""

    kinds: tuple[str, ...] = KINDS
    chances: tuple[float, ...] = (4.0, 2.5, 1.5, 0.7, 0.8, 0.5, 4.0)
    bf16: bool = True  # where the hardware has it


@dataclass(frozen=True)
class SupervisedTraining(DiffusionTraining):
    """What stages have that learn from true latents: `loss` says how far a prediction is from them (`distances`)."""

    loss: str = "square"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("square", "root"):
            raise ConversionError(f"loss is {self.loss!r}; it must be square or root")


@dataclass(frozen=True)
class BaseTraining(SupervisedTraining):
    """The networks' keys are those of unet/config.json and text_encoder/config.json."""

    caption_dropout: float = 0.1
    first_share: float = 0.0  # of timesteps that are 999, where a picture follows from its caption alone
    init: str | None = None  # a pipeline directory, from the run's folder, of which all weights that fit are taken
    fresh: tuple[str, ...] = ()  # beginnings of names in the UNet that start at random all the same
    block_out_channels: tuple[int, ...] = (64, 128, 192, 192)
    downsample: tuple[bool, ...] = (True, True, False)
    layers_per_block: tuple[int, ...] = (2, 1, 1, 1)
    transformer_layers_per_block: tuple[int, ...] = (0, 1, 2, 2)
    self_attention: tuple[bool, ...] = (False, False, False, True)
    mid_transformer_layers: int = 2
    separable_conv: tuple[bool, ...] = (False, False, True, True)
    attention_head_dim: int = 32
    norm_num_groups: int = 16
    attention_fn: str = "softmax"
    hidden_size: int = 192
    intermediate_size: int = 576
    num_hidden_layers: int = 4
    num_attention_heads: int = 6

    def networks(self, tokenizer: Tokenizer, latents: tuple[int, ...]) -> TextToLatents:
        """Random networks for a vocabulary and for latents of a shape (n, channels, height, width)."""

        def shared(cls: type) -> dict[str, object]:
            return {entry.name: getattr(self, entry.name) for entry in fields(cls) if hasattr(self, entry.name)}

        text = TextEncoderConfig(
            **shared(TextEncoderConfig),  # type: ignore[arg-type]
            vocab_size=tokenizer.vocab_size,
            max_position_embeddings=tokenizer.length,
        )
        unet = UNetConfig(
            **shared(UNetConfig),  # type: ignore[arg-type]
            in_channels=latents[1],
            out_channels=latents[1],
            sample_size=latents[2],
            cross_attention_dim=self.hidden_size,
        )
        return TextToLatents(CLIPTextModel(text), MobileDiffusionUNet2DConditionModel(unet))


class Batches:
    """Random rows of a run's pool, as tensors on a device."""

    def __init__(self, context: Context, config: DiffusionTraining) -> None:
        self.pool: Pool = read_pool(context.folder / "latents" / FILE_NAME)
        self._chances = dict(zip(config.kinds, config.chances, strict=False))
        self._device = context.device
        arrays = (self.pool.latents, self.pool.members, self.pool.directions)
        self._latents, self._members, self._directions = (to_device(array, self._device) for array in arrays)

    def draw(
        self, random: np.random.Generator, count: int, chances: Mapping[str, float] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Clean latents and noise, (count, channels, height, width) float32, and ids (count, length) int64."""
        rows = self.pool.sample(random, count, chances or self._chances)
        noise = torch.randn(count, *self._latents.shape[1:], device=self._device)
        choices = to_device(self.pool.choices(rows), self._device)
        likeness = torch.einsum("nmc,nc->nm", self._directions[choices], noise.mean((2, 3)))
        chosen = choices.gather(1, likeness.argmax(1, keepdim=True))[:, 0]
        ids = to_device(self.pool.ids[rows].astype(np.int64), self._device)
        return self._latents[self._members[chosen]].float(), noise, ids


def random_timesteps(random: np.random.Generator, count: int, device: str, first_share: float = 0.0) -> Tensor:
    """(count) int64 from 0 to 999, most of them large, and this share of them 999."""
    timesteps = (NUM_TRAIN_TIMESTEPS * random.random(count) ** _TIMESTEP_POWER).astype(np.int64)
    timesteps[random.random(count) < first_share] = NUM_TRAIN_TIMESTEPS - 1
    return to_device(np.minimum(timesteps, NUM_TRAIN_TIMESTEPS - 1), device)


def distances(predicted: Tensor, true: Tensor, loss: str) -> Tensor:
    """Of each of the samples (n, ...) the mean square of its differences, "square", or its "root".

    The mean of squares is least where predictions are averages of all that may be true. That of roots is least at their
    geometric median: where one thing is likelier than all others together, at that one.
    """
    squares = (predicted - true).square().flatten(1).mean(1)
    return squares if loss == "square" else (squares + _SMALLEST_SQUARE).sqrt()


def dropped(random: np.random.Generator, ids: Tensor, empty: Tensor, share: float) -> Tensor:
    """The ids (n, length) with the empty caption (1, length) for a share of them."""
    here = to_device(random.random(len(ids)) < share, ids.device)
    return torch.where(here[:, None], empty, ids)


def recorded(model: TextToLatents, batches: Batches, config: DiffusionTraining, device: str) -> Callable[..., Tensor]:
    """The model for the batches of a training, in bf16 where that is faster, on a GPU from a CUDA graph.

    A small network has thousands of kernels that take less time than it takes to launch them.
    """
    if torch.device(device).type != "cuda":

        def predict(*state: Tensor) -> Tensor:
            with autocast(device, config.bf16):
                return model(*state)

        return predict
    sample, _, ids = batches.draw(np.random.default_rng(0), config.batch_size)
    timestep = torch.zeros(len(ids), dtype=torch.long, device=device)
    with autocast(device, config.bf16, cache_enabled=False):
        replayed: Callable[..., Tensor] = torch.cuda.make_graphed_callables(model, (sample, timestep, ids))
    return replayed


def run(context: Context) -> None:
    """Leaves `light`: the averaged networks, with tokenizer and decoder."""
    config = context.config(BaseTraining)
    batches = Batches(context, config)
    torch.manual_seed(config.seed)
    model = config.networks(Tokenizer(context.folder / TOKENIZER), batches.pool.latents.shape)
    if config.init and not context.goes_on:
        count = start_from(model, context.folder / config.init, context.folder / TOKENIZER, config.fresh)
        context.say(f"{count} of {len(list(model.parameters()))} tensors are taken from {config.init}")
    model = model.to(context.device)
    state = State({"model": model}, muon_and_adamw(model, config))
    state.add_averages("model")
    diffusion, empty = Diffusion(context.device), empty_ids(context.folder).to(context.device)

    predict = recorded(model, batches, config, context.device)

    def update(step: int, random: np.random.Generator) -> Mapping[str, Tensor]:
        del step
        sample, noise, ids = batches.draw(random, workers.share(config.batch_size))
        ids = dropped(random, ids, empty, config.caption_dropout)
        timestep = random_timesteps(random, len(ids), context.device, config.first_share)
        velocity = predict(diffusion.add_noise(sample, noise, timestep), timestep, ids)
        loss = distances(velocity, diffusion.velocity(sample, noise, timestep), config.loss).mean()
        workers.descend(model, state.optimizers.values(), loss, config.clip_norm)
        return {"loss": loss.detach()}

    train(context, config, state, update, on_checkpoint=lambda: write_light(context, state.averages["model"]))
