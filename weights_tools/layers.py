"""Layers of checkpoints as nodes of a graph.

`module` is the name of the layer's weights in the checkpoint; the node is called the same unless `name` says otherwise.
"""

from __future__ import annotations

from mdrt.graph import Graph


def conv2d(
    graph: Graph,
    x: str,
    module: str,
    in_channels: int,
    out_channels: int,
    *,
    kernel_size: int = 3,
    stride: int = 1,
    pads: tuple[int, int, int, int] | None = None,
    name: str | None = None,
) -> str:
    """A square convolution with bias; `pads` above, left, below, right are by default half the kernel."""
    return graph.add(
        "conv2d",
        [x, f"{module}.weight", f"{module}.bias"],
        name=name or module,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=[kernel_size] * 2,
        stride=[stride] * 2,
        pads=pads or [kernel_size // 2] * 4,
    )


def separable_conv2d(
    graph: Graph, x: str, module: str, in_channels: int, out_channels: int, *, stride: int = 1, name: str | None = None
) -> str:
    """A depthwise 3x3 convolution without bias, then a pointwise one with bias."""
    x = graph.add(
        "depthwise_conv2d",
        [x, f"{module}.depthwise.weight"],
        name=f"{module}.depthwise",
        channels=in_channels,
        kernel_size=[3, 3],
        stride=[stride] * 2,
        pads=[1] * 4,
    )
    return conv2d(graph, x, f"{module}.pointwise", in_channels, out_channels, kernel_size=1, name=name or module)


def linear(
    graph: Graph,
    x: str,
    module: str,
    in_features: int,
    out_features: int,
    *,
    bias: bool = True,
    name: str | None = None,
) -> str:
    """A matrix product over the last dimension."""
    weights = [f"{module}.weight", f"{module}.bias"] if bias else [f"{module}.weight"]
    return graph.add("linear", [x, *weights], name=name or module, in_features=in_features, out_features=out_features)


def group_norm(graph: Graph, x: str, module: str, channels: int, num_groups: int, eps: float) -> str:
    """GroupNorm with scale and shift."""
    weights = [f"{module}.weight", f"{module}.bias"]
    return graph.add("group_norm", [x, *weights], name=module, num_groups=num_groups, num_channels=channels, eps=eps)


def layer_norm(graph: Graph, x: str, module: str, size: int, eps: float = 1e-5) -> str:
    """LayerNorm over the last dimension with scale and shift."""
    return graph.add(
        "layer_norm", [x, f"{module}.weight", f"{module}.bias"], name=module, normalized_shape=size, eps=eps
    )


def silu(graph: Graph, x: str) -> str:
    """The SiLU of a value, called `<value>.silu`."""
    return graph.add("silu", [x], name=f"{x}.silu")


def add(graph: Graph, a: str, b: str, name: str) -> str:
    """a + b."""
    return graph.add("add", [a, b], name=name)


def attention(
    graph: Graph,
    q: str,
    k: str,
    v: str,
    name: str,
    num_heads: int,
    attention_fn: str = "softmax",
    is_causal: bool = False,
) -> str:
    """Attention without its projections; shared K/V is one value given twice."""
    causal = "true" if is_causal else "false"
    return graph.add(
        "attention", [q, k, v], name=name, num_heads=num_heads, attention_fn=attention_fn, is_causal=causal
    )
