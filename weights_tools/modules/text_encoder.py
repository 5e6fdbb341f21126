"""The CLIP text encoder in PyTorch: transformers' CLIPTextModel, tensor for tensor; needs the extra `train`.

Parameters are called as in checkpoints of transformers 5, so `load_state_dict` takes them.
"""

# PyTorch gives the results of modules as Any, and attributes of modules as Tensor or Module.
# mypy: disable-error-code="no-any-return, no-untyped-call, operator"

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from weights_tools.components import text_encoder_config
from weights_tools.modules.attention import join_heads, softmax_attention, split_heads
from weights_tools.modules.loading import load
from weights_tools.text_encoder import TextEncoderConfig

_PREFIX = "text_model."


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), which OpenAI's CLIP has for GELU."""
    return x * torch.sigmoid(1.702 * x)


class Embeddings(nn.Module):
    """Of a token and of its position."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.token_embedding(input_ids) + self.position_embedding.weight[: input_ids.shape[-1]]


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (split_heads(proj(x), self.num_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(join_heads(softmax_attention(query, key, value, is_causal=True)))


class Mlp(nn.Module):
    """Two linear layers around the activation."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.activation_fn = quick_gelu if config.hidden_act == "quick_gelu" else functional.gelu
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation_fn(self.fc1(x)))


class Layer(nn.Module):
    """Attention and MLP, each normalised before and added after."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """All layers."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class CLIPTextModel(nn.Module):
    """forward takes input_ids (n, tokens) and returns the last hidden state (n, tokens, hidden_size)."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        # Embeddings as small as transformers starts them: PyTorch's would drown what attention adds.
        for embedding in (self.embeddings.token_embedding, self.embeddings.position_embedding):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.final_layer_norm(self.encoder(self.embeddings(input_ids)))


def load_text_encoder(path: str | os.PathLike[str]) -> CLIPTextModel:
    """The text encoder of a pipeline directory; errors as `load`."""
    return load(
        path,
        "text_encoder",
        lambda checkpoint: CLIPTextModel(text_encoder_config(checkpoint)),
        lambda name: name.removeprefix(_PREFIX),
    )
