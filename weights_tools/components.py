"""The networks of a checkpoint as graphs with weights."""

from __future__ import annotations

from dataclasses import dataclass

from mdrt.errors import ConversionError, Error
from mdrt.graph import Graph
from weights_tools.checkpoint import Checkpoint, CheckpointWeights
from weights_tools.text_encoder import TextEncoderConfig, build_text_encoder
from weights_tools.unet import UNetConfig, build_unet
from weights_tools.vae import VaeConfig, build_vae_decoder, build_vae_encoder

_TEXT_IGNORED = (
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dropout",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "projection_dim",
    "return_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
)
_VAE_IGNORED = ("force_upcast", "sample_size")
# Keys whose value must be the one that the graphs are made for.
_VAE_FIXED = {"act_fn": "silu", "latents_mean": None, "latents_std": None}
_VAE_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


@dataclass(frozen=True)
class Network:
    """One component: its graph and its weights."""

    graph: Graph
    weights: CheckpointWeights


@dataclass(frozen=True)
class Networks:
    """What a checkpoint holds: configurations, and components by the names they have in bundles."""

    text_encoder: TextEncoderConfig
    unet: UNetConfig
    vae: VaeConfig
    components: dict[str, Network]


def load_networks(checkpoint: Checkpoint, with_encoder: bool = False) -> Networks:
    """Builds the graphs of a checkpoint and finds their weights; `with_encoder` adds the component `vae_encoder`.

    Raises:
        ConversionError: a network of another kind, a contradiction, or a missing, surplus or misshapen tensor.
    """
    text_encoder = text_encoder_config(checkpoint)
    unet = unet_config(checkpoint)
    vae = vae_config(checkpoint)
    if unet.in_channels != vae.latent_channels or unet.out_channels != vae.latent_channels:
        raise ConversionError(
            f"the unet takes {unet.in_channels} and gives {unet.out_channels} channels, "
            f"but the vae has {vae.latent_channels} latent_channels"
        )
    if unet.cross_attention_dim != text_encoder.hidden_size:
        raise ConversionError(
            f"the unet's cross_attention_dim is {unet.cross_attention_dim}, "
            f"but the text encoder's hidden_size is {text_encoder.hidden_size}"
        )
    vae_files = checkpoint.weights("vae")
    graphs = {
        "text_encoder": (build_text_encoder(text_encoder), checkpoint.weights("text_encoder"), ("",)),
        "unet": (build_unet(unet), checkpoint.weights("unet"), ("",)),
        "vae_decoder": (build_vae_decoder(vae), vae_files, ("decoder.", "post_quant_conv.")),
    }
    if with_encoder:
        graphs["vae_encoder"] = (build_vae_encoder(vae), vae_files, ("encoder.", "quant_conv."))
    components = {}
    for name, (graph, files, prefixes) in graphs.items():
        check_graph(graph, name)
        components[name] = Network(graph, CheckpointWeights(graph, files, prefixes))
    return Networks(text_encoder, unet, vae, components)


def text_encoder_config(checkpoint: Checkpoint) -> TextEncoderConfig:
    """The configuration of a checkpoint's text encoder; errors as `load_networks`."""
    return checkpoint.config("text_encoder", TextEncoderConfig, {"model_type": "clip_text_model"}, _TEXT_IGNORED)


def unet_config(checkpoint: Checkpoint) -> UNetConfig:
    """The configuration of a checkpoint's UNet; errors as `load_networks`."""
    return checkpoint.config("unet", UNetConfig, {"_class_name": "MobileDiffusionUNet2DConditionModel"}, ())


def check_graph(graph: Graph, name: str) -> None:
    """Raises ConversionError when the configuration of component `name` makes no valid graph."""
    try:
        graph.validate()
    except Error as error:
        raise ConversionError(f"the configuration of the {name} contradicts itself: {error}") from error


def vae_config(checkpoint: Checkpoint) -> VaeConfig:
    """The configuration of a checkpoint's autoencoder; errors as `load_networks`."""
    where = "vae/config.json"
    document = checkpoint.json(where)
    ignored = (*_VAE_IGNORED, *_VAE_FIXED, *_VAE_BLOCKS)
    config = checkpoint.config("vae", VaeConfig, {"_class_name": "AutoencoderKL"}, ignored)
    for key, expected in _VAE_FIXED.items():
        if document.get(key, expected) != expected:
            raise ConversionError(f"{where}: {key} is {document[key]!r}; only {expected!r} can be converted")
    for key, expected in _VAE_BLOCKS.items():
        # Without the key diffusers makes one block, whatever block_out_channels says.
        blocks = document.get(key, [expected])
        if blocks != [expected] * len(config.block_out_channels):
            raise ConversionError(
                f"{where}: {key} is {blocks!r}; "
                f"{expected} for each of {len(config.block_out_channels)} levels can be converted"
            )
    return config
