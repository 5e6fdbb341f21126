"""The stage `vae`: trains the autoencoder on true pictures.

First on crops that show content, then on whole pictures, whose statistics the normalisation layers meet in use. The
loss is the absolute error, of the picture, of its differences over 1, 2 and 4 pixels, and of the picture pooled;
latents get a little noise on the way, so that the decoder bears what a UNet draws. `anchor` ties three latent channels
to the pooled colours at first: without that, colours are learnt last.
"""

# PyTorch gives the results of modules as Any.
# mypy: disable-error-code="no-any-return, no-untyped-call"

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdrt.errors import InvalidArgumentError
from weights_tools.pipeline_files import block_types, config_head
from weights_tools.training import figures
from weights_tools.training.emoji import read_training_emoji
from weights_tools.training.imagefolder import read_pictures
from weights_tools.training.light import Part, write_pipeline
from weights_tools.training.sources import Emoji, Pictures, Source, batch
from weights_tools.training.stage import Context, LoopConfig, State, train
from weights_tools.vae import VaeConfig

if TYPE_CHECKING:
    from torch import Tensor

    from weights_tools.modules.vae import AutoencoderKL

_GRADIENT_PIXELS = (1, 2, 4)
_POOLED_PIXELS = (2, 4, 8)
_ANCHOR_SCALE = 1.4  # brings pooled colours to about unit variance
_CELL = 8


@dataclass(frozen=True)
class VaeTraining(LoopConfig):
    """`samples` and `batch_size` count crops; a whole picture is (picture / crop)^2 of them."""

    picture: int = 128
    crop: int = 64
    whole: float = 0.2  # the share of the samples, at the end, that are whole pictures
    block_out_channels: tuple[int, ...] = (16, 32, 96, 160)
    layers_per_block: int = 1
    latent_channels: int = 8
    norm_num_groups: int = 4
    init: str | None = None  # a pipeline directory in the run's folder to start from; a narrower network is widened
    freeze_encoder: bool = False  # with `init`: latents stay as they are, and only the decoder learns
    gradient_weight: float = 0.6
    pooled_weight: float = 1.0
    square_weight: float = 0.0
    foreground_weight: float = 2.0
    latent_noise: float = 0.05  # standard deviation; latents are held near unit variance
    anchor: float = 1.0  # weight of the colour anchor at the start
    anchor_share: float = 0.3  # of the samples, after which it has gone
    concepts: tuple[str, ...] = ()  # names of the emoji to learn; none: all
    images: str | None = None  # a folder of pictures in the run's folder, instead of emoji

    def network(self) -> VaeConfig:
        """The autoencoder as its config.json describes it."""
        shared = {entry.name for entry in fields(VaeConfig)} & {entry.name for entry in fields(VaeTraining)}
        values = {name: getattr(self, name) for name in shared}
        return VaeConfig(**values, mid_block_add_attention=False, scaling_factor=1.0)


def run(context: Context) -> None:
    """Trains, and leaves `vae/light`: the averaged autoencoder with its encoder."""
    import torch

    from weights_tools.modules.vae import AutoencoderKL, load_autoencoder
    from weights_tools.training import workers
    from weights_tools.training.muon import muon_and_adamw
    from weights_tools.training.networks import autocast
    from weights_tools.training.widen import widen

    config = context.config(VaeTraining)
    source = _source(context, config)
    torch.manual_seed(config.seed)
    if config.init and not context.goes_on:
        model = widen(load_autoencoder(context.folder / config.init), config.block_out_channels)
        if replace(model.config, scaling_factor=1.0) != config.network():
            raise InvalidArgumentError(f"{config.init} is {model.config}, but the settings are for {config.network()}")
    else:
        model = AutoencoderKL(config.network())
    model = model.to(context.device, memory_format=torch.channels_last).train()
    if config.freeze_encoder:
        model.freeze_encoder()
    state = State({"vae": model}, muon_and_adamw(model, config))
    state.add_averages("vae")
    true = source.shown()

    def update(step: int, random: np.random.Generator) -> Mapping[str, float]:
        done = step / config.steps
        whole = done >= 1 - config.whole
        count = workers.share(config.batch_size)
        if whole:
            count = max(1, count * config.crop**2 // config.picture**2)
        pictures, foreground = batch(source, random, count, config.picture, None if whole else config.crop)
        sample, weight = to_tensor(pictures, context.device), torch.from_numpy(foreground).to(context.device)
        with autocast(context.device):
            latents = model.encode(sample)
            output = model.decode(latents + config.latent_noise * torch.randn_like(latents))
        losses = _losses(config, done, sample, weight, latents.float(), output.float())
        loss = sum(losses.values())
        workers.descend(model, state.optimizers.values(), loss, config.clip_norm)
        return {name: value.detach() for name, value in losses.items()}

    def measure() -> Mapping[str, float]:
        drawn = reconstruct(state.averages["vae"], true, context.device)
        return {name: float(np.median(figure(drawn, true))) for name, figure in figures.FIGURES.items()}

    train(context, config, state, update, measure, lambda: _write(context, state.averages["vae"]))


def _source(context: Context, config: VaeTraining) -> Source:
    if config.images:
        return Pictures(np.stack(list(read_pictures(context.folder / config.images, config.picture))))
    return Emoji(read_training_emoji(context.folder, config.concepts), config.picture)


def to_tensor(pictures: NDArray[np.uint8], device: str) -> Tensor:
    """(n, h, w, 3) uint8 -> (n, 3, h, w) float32 from -1 to 1, channels last in memory."""
    import torch

    return torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pictures(sample: Tensor) -> NDArray[np.uint8]:
    """(n, 3, h, w) about -1 to 1 -> (n, h, w, 3) uint8."""
    scaled = (sample.float() / 2 + 0.5).clamp(0, 1) * 255
    return scaled.round().byte().permute(0, 2, 3, 1).cpu().numpy()


def reconstruct(model: AutoencoderKL, pictures: NDArray[np.uint8], device: str) -> NDArray[np.uint8]:
    """Pictures (n, h, w, 3) through the autoencoder and back."""
    import torch

    with torch.no_grad():
        parts = [pictures[start : start + 16] for start in range(0, len(pictures), 16)]
        return np.concatenate([to_pictures(model.decode(model.encode(to_tensor(part, device)))) for part in parts])


def _losses(
    config: VaeTraining, done: float, sample: Tensor, foreground: Tensor, latents: Tensor, output: Tensor
) -> dict[str, Tensor]:
    """The terms of the loss, weighted, by name."""
    from torch.nn import functional

    weight = 1 + (config.foreground_weight - 1) * foreground
    error = output - sample
    terms = {"absolute": (weight * error.abs()).mean()}
    differences = [(error[..., n:, :] - error[..., :-n, :]).abs().mean() for n in _GRADIENT_PIXELS]
    differences += [(error[..., n:] - error[..., :-n]).abs().mean() for n in _GRADIENT_PIXELS]
    terms["gradient"] = config.gradient_weight * sum(differences) / 2
    pooled = [functional.avg_pool2d(error, n).abs().mean() for n in _POOLED_PIXELS]
    terms["pooled"] = config.pooled_weight * sum(pooled) / len(pooled)
    if config.square_weight:
        terms["square"] = config.square_weight * error.square().mean()
    variance = latents.square().mean((0, 2, 3))
    terms["variance"] = 2e-3 * (variance - 1).square().mean()
    anchor = config.anchor * max(0.0, 1 - done / config.anchor_share) if config.anchor else 0.0
    if anchor:
        colours = _ANCHOR_SCALE * functional.avg_pool2d(sample, _CELL)
        terms["anchor"] = anchor * (latents[:, : sample.shape[1]] - colours).abs().mean()
    return terms


def vae_json(config: VaeConfig, picture: int, scaling_factor: float) -> dict[str, Any]:
    """What vae/config.json says, in diffusers' words."""
    return {
        **config_head("vae"),
        **asdict(config),
        **block_types(len(config.block_out_channels)),
        "sample_size": picture,
        "scaling_factor": scaling_factor,
    }


def _write(context: Context, model: AutoencoderKL) -> None:
    config = context.config(VaeTraining)
    document = vae_json(model.config, config.picture, 1.0)
    write_pipeline(context.output / "light", {"vae": Part(document, model.state_dict())})
