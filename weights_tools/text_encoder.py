"""The graph of a CLIP text encoder (transformers' CLIPTextModel)."""

from __future__ import annotations

from dataclasses import dataclass

from mdrt.errors import ConversionError
from mdrt.graph import Graph
from weights_tools import layers

# hidden_act: these are names of ops as well.
_ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class TextEncoderConfig:
    """The keys of text_encoder/config.json that shape the network; defaults are transformers'."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.hidden_size, self.intermediate_size, self.max_position_embeddings)
        if min(*sizes, self.num_hidden_layers, self.num_attention_heads) < 1:
            raise ConversionError("text_encoder/config.json: sizes and counts must be at least 1")
        if self.hidden_act not in _ACTIVATIONS:
            words = " or ".join(_ACTIVATIONS)
            raise ConversionError(f"text_encoder/config.json: hidden_act is {self.hidden_act!r}; it must be {words}")


def build_text_encoder(config: TextEncoderConfig) -> Graph:
    """input_ids (batch, sequence_length) int32 -> last_hidden_state (batch, sequence_length, hidden_size)."""
    graph = Graph()
    size = config.hidden_size
    ids = graph.input("input_ids", ["batch", "sequence_length"], "int32")
    x = graph.add(
        "embedding",
        [ids, "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"],
        name="embeddings",
        num_embeddings=config.vocab_size,
        embedding_dim=size,
        max_position_embeddings=config.max_position_embeddings,
    )
    for index in range(config.num_hidden_layers):
        x = _layer(graph, x, f"encoder.layers.{index}", config)
    x = layers.layer_norm(graph, x, "final_layer_norm", size, config.layer_norm_eps)
    graph.output(x, "last_hidden_state")
    return graph


def _layer(graph: Graph, x: str, name: str, config: TextEncoderConfig) -> str:
    size = config.hidden_size
    y = layers.layer_norm(graph, x, f"{name}.layer_norm1", size, config.layer_norm_eps)
    q, k, v = (layers.linear(graph, y, f"{name}.self_attn.{part}_proj", size, size) for part in "qkv")
    y = layers.attention(graph, q, k, v, f"{name}.self_attn.attention", config.num_attention_heads, is_causal=True)
    y = layers.linear(graph, y, f"{name}.self_attn.out_proj", size, size)
    x = layers.add(graph, x, y, f"{name}.self_attn.residual")
    y = layers.layer_norm(graph, x, f"{name}.layer_norm2", size, config.layer_norm_eps)
    y = layers.linear(graph, y, f"{name}.mlp.fc1", size, config.intermediate_size)
    y = graph.add(config.hidden_act, [y], name=f"{name}.mlp.activation_fn")
    y = layers.linear(graph, y, f"{name}.mlp.fc2", config.intermediate_size, size)
    return layers.add(graph, x, y, name)
