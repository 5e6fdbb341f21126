"""The networks of checkpoints in PyTorch, for export and training; needs the extra `train` or `export`."""

from weights_tools.modules.text_encoder import CLIPTextModel, load_text_encoder
from weights_tools.modules.unet import MobileDiffusionUNet2DConditionModel, load_unet
from weights_tools.modules.vae import AutoencoderKL, load_autoencoder, load_decoder

__all__ = [
    "AutoencoderKL",
    "CLIPTextModel",
    "MobileDiffusionUNet2DConditionModel",
    "load_autoencoder",
    "load_decoder",
    "load_text_encoder",
    "load_unet",
]
