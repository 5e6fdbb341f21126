"""Layers that benchmarks measure: the file, the language, that each is planned as one piece, the measurement."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from mdrt import _core, layers
from mdrt.bench_kernels import Probe, measure
from mdrt.cli import main
from mdrt.errors import InvalidArgumentError
from mdrt.formats import LAYER_FORMATS

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

# One of each kind in layers.txt, small. Behind each: the layer's kernels, and all others that run for it.
SMALL = {
    "16x16x32 | conv2d 3x3 32": ["gemm"],
    "16x16x32 | conv2d 3x3/2 48": ["gemm"],
    "16x8x16+32 | conv2d 1x1 32": ["gemm"],
    "16x16x16+32 | group_norm 4 | silu | conv2d 3x3 32 | add image": ["gemm"],
    "8x16x32 | group_norm 4 | silu | conv2d 3x3 32 | add": ["gemm"],
    "16x16x32 | group_norm 4 | silu | depthwise_conv2d 3x3 | conv2d 1x1 32 | add": ["gemm"],
    "16x16x32 | upsample 2 | conv2d 3x3 16": ["gemm"],
    "16x16x32 | resize_like 32x32 | conv2d 3x3 16": ["gemm"],
    "8x8x32 | linear 96 | gated_unit silu": ["gemm"],
    "13x32 | linear 48 | quick_gelu": ["gemm"],
    "13x32 | linear 32 | add": ["gemm"],
    "32 | linear 48 | silu": ["gemm"],
    "16x16x32 | attention 2 heads 24 keys shared": ["attention"],
    "13x32 | attention 2 heads 13 keys causal": ["attention"],
    "16x16x32 | attention 4 heads 9 keys relu": ["attention"],
    "16x16x32 | group_norm 4": ["group_norm_sums", "group_norm_finish"],
    "13x32 | layer_norm": ["layer_norm"],
}


def test_file_is_what_the_models_have(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    spec = importlib.util.spec_from_file_location("list_layers", BENCHMARKS / "list_layers.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.text() == Path(layers.__file__).with_name("layers.txt").read_text(encoding="ascii")


def test_every_line_is_a_layer():
    found = layers.read()
    assert len(found) > 50
    for layer in found:
        assert layers.build(layer.text).main > 0
        assert set(layer.calls) == set(layers.MODELS) and sum(layer.calls.values()) > 0


@pytest.mark.parametrize("format", LAYER_FORMATS)
@pytest.mark.parametrize("text", SMALL)
def test_layer_is_one_piece_and_right(text, format):
    probe = Probe(text, format, threads=2)
    kernels = [step[0].partition(" ")[0] for step in probe.profile(1)]
    if format != "int8":
        assert kernels == SMALL[text]
    assert probe.error() <= {"fp32": 1e-5, "fp16": 2**-10, "int8": 2**-8, "int8_weights": 2**-10}[format]
    assert probe.arithmetic == ("int8" if format == "int8" and "gemm" in SMALL[text] else "fp32")
    assert all(seconds > 0 for seconds in probe.seconds(2))
    assert probe.gigabytes > 0


def test_error_tells_a_wrong_result():
    probe = Probe("16x16x32 | conv2d 3x3 32", "fp32")
    probe.experiment.weights["layer1.weight"][3, 2, 1, 1] += 0.1
    assert probe.error() > 1e-4


@pytest.mark.parametrize(
    ("text", "gmac"),
    [
        ("16x8x16+32 | conv2d 3x3/2 64", 8 * 4 * 48 * 64 * 9e-9),
        ("13x32 | linear 48", 13 * 32 * 48e-9),
        ("8x8x32 | attention 2 heads 24 keys shared", 2 * 64 * 24 * 32e-9),
        ("13x32 | layer_norm", 0),
    ],
)
def test_measure(text, gmac):
    found = measure(Probe(text, "fp32", threads=1), 2)
    assert found["gmac"] == pytest.approx(gmac)
    assert found["seconds"] > 0 and sum(found["kernels"].values()) > 0
    assert found["gmac_per_second"] == pytest.approx(gmac / found["seconds"])


def test_bytes_that_a_layer_moves():
    read, written, weights = 16 * 8 * 48, 16 * 8 * 64, 48 * 64
    assert Probe("16x8x48 | conv2d 1x1 64", "fp32").gigabytes == pytest.approx(4e-9 * (read + written + weights))
    assert Probe("16x8x48 | conv2d 1x1 64", "fp16").gigabytes == pytest.approx(2e-9 * (read + written + weights))
    assert Probe("16x8x48 | group_norm 4", "fp16").gigabytes == pytest.approx(2e-9 * read)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "16x16x32",
        "16x16x32 | silu",
        "16x16x32 | conv3d 3x3 8",
        "16x16x32 | conv2d 3x3",
        "16x16x32 | conv2d 3x3 many",
        "17x16x32 | conv2d 3x3 8",
        "16x16x32 | conv2d 3x3 8 | add twice",
        "16x16x32 | group_norm 5",
        "32 | conv2d 1x1 8",
    ],
)
def test_no_layer(text):
    with pytest.raises(InvalidArgumentError):
        Probe(text, "fp32")


def test_unknown_format_and_isa():
    with pytest.raises(InvalidArgumentError, match="format"):
        Probe("13x32 | linear 48", "fp8")
    with pytest.raises(InvalidArgumentError, match="not compiled in"):
        Probe("13x32 | linear 48", "fp32", isa="mmx")


@pytest.mark.parametrize("isa", [row["name"] for row in _core.build_info()["isas"] if row["usable"]])
@pytest.mark.parametrize("what", ["fp32", "int8"])
def test_peaks(isa, what):
    assert _core.measure_peak(what, isa, 1) > 1e6


def test_unknown_peak():
    with pytest.raises(InvalidArgumentError, match="no peak"):
        _core.measure_peak("fp64")
    with pytest.raises(InvalidArgumentError, match="not compiled in"):
        _core.measure_peak("fp32", "mmx")
    with pytest.raises(InvalidArgumentError, match="1 pass or more"):
        _core.measure_peak("fp32", passes=0)


def test_command(capsys):
    arguments = ["bench", "kernels", "--filter", "77x768 | l", "--repeats", "1"]
    assert main([*arguments, "--json", "--threads", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["threads"] == 1 and found["isa"] and found["compiler"] and "-O" in found["compiler_flags"]
    assert set(found["peaks"]) == {"fp32", "int8", "read"} and min(found["peaks"].values()) > 1e6
    assert {layer["format"] for layer in found["layers"]} == {"fp32", "fp16", "int8"}
    for layer in found["layers"]:
        assert layer["layer"].startswith("77x768 | l") and layer["seconds"] > 0
        assert (layer["share_of_peak"] is None) == ("norm" in layer["layer"])
    assert main([*arguments, "--format", "fp16", "--isa", "generic"]) == 0
    out = capsys.readouterr().out
    assert "isa generic" in out and "77x768 | layer_norm" in out and "int8  " not in out


@pytest.mark.parametrize(
    "arguments",
    [
        ["kernels", "--filter", "conv9d"],
        ["kernels", "--isa", "mmx"],
        ["kernels", "--profile"],
        ["kernels", "--model", "a.mdrt"],
        ["unet", "--filter", "conv2d"],
        ["unet", "--isa", "mmx"],
    ],
    ids=" ".join,
)
def test_bad_commands(arguments, capsys):
    try:
        code = main(["bench", *arguments])
    except SystemExit as usage:
        code = usage.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err
