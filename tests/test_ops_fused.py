"""Whole networks of odd sizes: the fused plan, the unfused plan and the reference agree, inside and at the end."""

import math
import random

import numpy as np
import pytest

from mdrt import _core
from mdrt.graph import Graph
from mdrt.interpreter import Interpreter
from weights_tools.text_encoder import TextEncoderConfig, build_text_encoder
from weights_tools.unet import UNetConfig, build_unet
from weights_tools.vae import VaeConfig, build_vae_decoder, build_vae_encoder

ISAS = [isa["name"] for isa in _core.build_info()["isas"] if isa["usable"]]
TOLERANCE = 3e-6  # relative RMSE; float32 rounding through about a hundred layers


def relative_rmse(x, expected):
    expected = expected.astype(np.float64)
    return float(np.sqrt(np.mean((x - expected) ** 2) / np.mean(expected**2)))


def random_weights(graph, seed):
    """Normal weights that keep activations near 1; biases and scales that do something."""
    generator = np.random.default_rng(seed)
    weights = {}
    for name, weight in graph.weights.items():
        inputs = math.prod(weight.shape[1:]) if weight.kind in ("panel", "depthwise") else 1
        array = generator.standard_normal(weight.shape) / math.sqrt(inputs)
        weights[name] = (array + (weight.kind == "vector" and name.endswith("weight"))).astype(np.float32)
    return weights


def unet_case(seed):
    draw = random.Random(seed)
    levels = draw.randint(2, 4)
    groups, head = draw.choice([1, 2, 3]), draw.choice([3, 8, 10, 16])
    if groups * head % 2:
        head += 1
    channels = tuple(head * groups * draw.randint(1, 3) for _ in range(levels))
    config = UNetConfig(
        in_channels=draw.choice([3, 4, 8]),
        out_channels=draw.choice([3, 4, 17]),
        block_out_channels=channels,
        downsample=tuple(draw.random() < 0.7 for _ in range(levels - 1)),
        layers_per_block=tuple(draw.randint(1, 2) for _ in range(levels)),
        transformer_layers_per_block=tuple(draw.randint(0, 1) for _ in range(levels)),
        self_attention=tuple(draw.random() < 0.5 for _ in range(levels)),
        mid_transformer_layers=1,
        separable_conv=tuple(draw.random() < 0.5 for _ in range(levels)),
        attention_head_dim=head,
        cross_attention_dim=draw.choice([8, 21, 32]),
        ff_mult=draw.choice([1, 4, 6]),
        norm_num_groups=groups,
        share_kv=draw.random() < 0.5,
        attention_fn=draw.choice(["softmax", "relu"]),
        act_fn=draw.choice(["silu", "gelu"]),
    )
    generator = np.random.default_rng(seed)
    batch, height, width = draw.randint(1, 2), draw.randint(1, 13), draw.randint(1, 17)
    feeds = {
        "sample": generator.standard_normal((batch, height, width, config.in_channels), dtype=np.float32),
        "timestep": generator.integers(0, 1000, batch).astype(np.float32),
        "encoder_hidden_states": generator.standard_normal((batch, 7, config.cross_attention_dim), dtype=np.float32),
    }
    return build_unet(config), feeds


def vae_case(seed):
    draw = random.Random(seed)
    groups = draw.choice([1, 3, 4])
    config = VaeConfig(
        block_out_channels=tuple(groups * draw.randint(2, 6) for _ in range(draw.randint(1, 3))),
        latent_channels=draw.choice([3, 4, 8]),
        norm_num_groups=groups,
        layers_per_block=draw.randint(1, 2),
        mid_block_add_attention=draw.random() < 0.5,
    )
    generator = np.random.default_rng(seed)
    height, width = draw.randint(1, 9), draw.randint(2, 9)
    if seed % 2:
        shape = (1, height * config.scale_factor, width * config.scale_factor, 3)
        return build_vae_encoder(config), {"sample": generator.standard_normal(shape, dtype=np.float32)}
    shape = (2, height, width, config.latent_channels)
    return build_vae_decoder(config), {"latent_sample": generator.standard_normal(shape, dtype=np.float32)}


def text_case(seed):
    draw = random.Random(seed)
    heads = draw.randint(1, 4)
    config = TextEncoderConfig(
        vocab_size=50,
        hidden_size=heads * draw.choice([5, 8, 17]),
        intermediate_size=draw.choice([16, 33]),
        num_hidden_layers=2,
        num_attention_heads=heads,
        max_position_embeddings=20,
        hidden_act=draw.choice(["gelu", "quick_gelu"]),
    )
    ids = np.random.default_rng(seed).integers(0, 50, (2, draw.randint(1, 20)), dtype=np.int32)
    return build_text_encoder(config), {"input_ids": ids}


CASES = (
    [(unet_case, seed) for seed in range(12)]
    + [(vae_case, seed) for seed in range(6)]
    + [(text_case, seed) for seed in range(4)]
)


@pytest.fixture(scope="module", params=CASES, ids=[f"{make.__name__}-{seed}" for make, seed in CASES])
def case(request):
    make, seed = request.param
    graph, feeds = make(seed)
    weights = random_weights(graph, seed)
    values = [node.name for node in graph.nodes]
    return graph, weights, feeds, Interpreter(graph, weights, "reference").run(feeds, values)


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("isa", ISAS)
def test_outputs(case, isa, fuse):
    graph, weights, feeds, expected = case
    results = Interpreter(graph, weights, threads=2, isa=isa, fuse=fuse).run(feeds)
    for name, value in graph.outputs.items():
        assert relative_rmse(results[name], expected[value]) < TOLERANCE


@pytest.mark.parametrize("isa", ISAS)
def test_every_inner_value(case, isa):
    """All values at once: nothing can be fused."""
    graph, weights, feeds, expected = case
    results = Interpreter(graph, weights, threads=1, isa=isa).run(feeds, list(expected))
    for node in graph.nodes:
        result, value = results[node.name], expected[node.name]
        assert result.shape == value.shape, node.name
        if node.attributes.get("attention_fn") == "relu":
            # Where nearly all scores are negative the result is a small difference of large products.
            scale = np.sqrt(np.mean(expected[node.inputs[2]].astype(np.float64) ** 2))
            assert np.sqrt(np.mean((result - value.astype(np.float64)) ** 2)) < TOLERANCE * scale, node.name
        else:
            assert relative_rmse(result, value) < TOLERANCE, node.name


def test_one_inner_value_at_a_time(case):
    """A value that is asked for ends a fusion; the outputs stay what they are."""
    graph, weights, feeds, expected = case
    interpreter = Interpreter(graph, weights, threads=1)
    (output, last), *_ = graph.outputs.items()
    for node in graph.nodes[:: max(1, len(graph.nodes) // 12)]:
        results = interpreter.run(feeds, [node.name, output])
        assert relative_rmse(results[node.name], expected[node.name]) < TOLERANCE, node.name
        assert relative_rmse(results[output], expected[last]) < TOLERANCE, node.name


def test_threads_and_repeats_change_no_byte(case):
    graph, weights, feeds, _ = case
    (output, *_) = graph.outputs
    five = Interpreter(graph, weights, threads=5)
    first = five.run(feeds)[output].tobytes()
    assert first == five.run(feeds)[output].tobytes()
    for threads in (1, 2):
        assert first == Interpreter(graph, weights, threads=threads).run(feeds)[output].tobytes()


def test_batch_is_made_of_its_images(case):
    """Every image of a batch has the bytes it has alone."""
    graph, weights, feeds, _ = case
    (output, *_) = graph.outputs
    interpreter = Interpreter(graph, weights, threads=2)
    together = interpreter.run(feeds)[output]
    for index in range(len(together)):
        alone = interpreter.run({name: array[index : index + 1] for name, array in feeds.items()})[output]
        assert alone.tobytes() == together[index].tobytes()


@pytest.mark.parametrize("format", ["fp16", "int8_weights"])
def test_formats_differ_by_the_rounding_of_halves(case, format):
    graph, weights, feeds, _ = case
    (output, *_) = graph.outputs
    native = Interpreter(graph, weights, threads=2, format=format).run(feeds)[output]
    reference = Interpreter(graph, weights, "reference", format=format).run(feeds)[output]
    assert relative_rmse(native, reference) < 5e-3


def test_size_one_everywhere():
    graph = Graph()
    x = graph.input("x", ["batch", 1, 1, 1])
    x = graph.add("upsample", [x], name="up", scale_factor=2)
    weights = ["w", "b"]
    sizes = {"in_channels": 1, "out_channels": 1, "kernel_size": [3, 3], "stride": [2, 2], "pads": [1, 1, 1, 1]}
    graph.output(graph.add("conv2d", [x, *weights], name="conv", **sizes), "y")
    feeds = {"x": np.full((1, 1, 1, 1), 2, np.float32)}
    arrays = {"w": np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3), "b": np.ones(1, np.float32)}
    # The kernel's middle and its right and lower neighbours meet the four pixels.
    assert Interpreter(graph, arrays).run(feeds)["y"].item() == 2 * (4 + 5 + 7 + 8) + 1


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
def test_small_deviations_from_a_large_mean(isa, kernel):
    """Sums of the squares of the values themselves would say nothing about 0.05 beside 300."""
    channels, generator = 24, np.random.default_rng(kernel)
    graph = Graph()
    x = graph.input("x", ["batch", "height", "width", channels])
    sizes = {"kernel_size": [kernel] * 2, "stride": [1, 1], "pads": [kernel // 2] * 4}
    x = graph.add("conv2d", [x, "w", "b"], name="conv", in_channels=channels, out_channels=channels, **sizes)
    x = graph.add("group_norm", [x, "gain", "shift"], name="norm", num_channels=channels, num_groups=3, eps=1e-5)
    graph.output(x, "y")
    weights = {
        "w": generator.standard_normal((channels, channels, kernel, kernel), dtype=np.float32) * 0.01,
        "b": 300 + 0.05 * generator.standard_normal(channels, dtype=np.float32),
        "gain": np.ones(channels, np.float32),
        "shift": np.zeros(channels, np.float32),
    }
    feeds = {"x": generator.standard_normal((2, 23, 37, channels), dtype=np.float32)}
    expected = Interpreter(graph, weights, "reference").run(feeds)["y"]
    for fuse in (True, False):
        result = Interpreter(graph, weights, threads=2, isa=isa, fuse=fuse).run(feeds)["y"]
        assert relative_rmse(result, expected) < 2e-3  # what float32 keeps of the deviations, four times
