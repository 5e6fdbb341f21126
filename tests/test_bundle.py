"""The bundle writer: layouts, formats, alignment, laziness, and what stays when writing fails."""

import json
import struct
import weakref

import numpy as np
import pytest
from mini_bundle import crc32c, weight

import mdrt
from mdrt import _core
from mdrt.bundle import write_bundle
from mdrt.formats import ComponentFormat
from mdrt.quantise import quantise_columns

SHAPES = {
    "panel": [(1, 1), (16, 16), (17, 5), (33, 48), (20, 7, 3, 3), (16, 1, 1, 1), (5, 17, 2, 3)],
    "vector": [(1,), (16,), (33,)],
    "table": [(1, 1), (7, 32), (5, 33)],
    "depthwise": [(1, 3, 3), (16, 3, 3), (19, 2, 5)],
}


def stored_by_definition(kind, array):
    """docs/format.md, "Stored weights", word by word."""
    r16 = lambda n: -(-n // 16) * 16  # noqa: E731
    if kind == "vector":
        return np.pad(array, (0, r16(len(array)) - len(array)))
    if kind == "table":
        return np.pad(array, ((0, 0), (0, -array.shape[1] % 32)))
    if kind == "depthwise":
        channels, kernel_h, kernel_w = array.shape
        return np.pad(array.reshape(channels, kernel_h * kernel_w).T, ((0, 0), (0, r16(channels) - channels)))
    out, channels = array.shape[:2]
    taps = array.reshape(out, channels, -1)
    padded = np.zeros((r16(out), r16(channels), taps.shape[2]), np.float32)
    padded[:out, :channels] = taps
    # (panel, column, channel, tap) -> (panel, (tap, channel), column)
    return padded.reshape(-1, 16, r16(channels), taps.shape[2]).transpose(0, 3, 2, 1).reshape(r16(out) // 16, -1, 16)


@pytest.mark.parametrize("kind, shape", [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes])
def test_pack_is_the_documented_layout(kind, shape):
    array = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    stored = _core.pack(kind, "fp32", array)
    assert stored.dtype == np.float32 and stored.shape == _core.stored_shape(kind, "fp32", shape)
    np.testing.assert_array_equal(stored, stored_by_definition(kind, array))
    np.testing.assert_array_equal(_core.unpack(kind, "fp32", stored, shape), array)


def int8_by_definition(kind, array):
    """docs/format.md, "Stored weights", int8: the place of every integer."""
    r16 = lambda n: -(-n // 16) * 16  # noqa: E731
    if kind == "table":
        return np.pad(array, ((0, 0), (0, -array.shape[1] % 64))).astype(np.int8)
    out, channels = array.shape[:2]
    taps = array.reshape(out, channels, -1)
    depth = taps.shape[2] * r16(channels)
    stored = np.zeros(r16(out) * depth, np.int8)
    for n, c, tap in np.ndindex(taps.shape):
        k = tap * r16(channels) + c
        stored[n // 16 * 16 * depth + ((k // 4) * 16 + n % 16) * 4 + k % 4] = taps[n, c, tap]
    return stored.reshape(r16(out) // 16, depth // 4, 64)


@pytest.mark.parametrize("kind, shape", [(kind, shape) for kind in ("panel", "table") for shape in SHAPES[kind]])
def test_int8_is_the_documented_layout(kind, shape):
    array = np.random.default_rng(5).integers(-127, 128, shape).astype(np.float32)
    stored = _core.pack(kind, "int8", array)
    assert stored.dtype == np.int8 and stored.shape == _core.stored_shape(kind, "int8", shape)
    assert stored.nbytes % 64 == 0
    np.testing.assert_array_equal(stored, int8_by_definition(kind, array))
    np.testing.assert_array_equal(_core.unpack(kind, "int8", stored, shape), array)


@pytest.mark.parametrize("count", [1, 16, 17])
def test_int32_vector(count):
    array = np.linspace(-(2**24), 2**24, count).round().astype(np.float32)
    stored = _core.pack("vector", "int32", array)
    assert stored.dtype == np.int32
    np.testing.assert_array_equal(stored, np.pad(array, (0, -count % 16)).astype(np.int32))
    np.testing.assert_array_equal(_core.unpack("vector", "int32", stored, (count,)), array)


@pytest.mark.parametrize("kind, format, value, says", [
    ("panel", "int8", 0.5, r"0\.5 is no integer from -127 to 127"),
    ("panel", "int8", 128.0, "128 is no integer"),
    ("panel", "int8", -128.0, "-128 is no integer"),
    ("panel", "int8", np.nan, "nan is no integer"),
    ("table", "int8", np.inf, "inf is no integer"),
    ("vector", "int32", 2.0**24 + 2, "16777218 is no integer from -16777216 to 16777216"),
    ("vector", "int32", -0.25, r"-0\.25 is no integer"),
])  # fmt: skip
def test_integers_are_exact(kind, format, value, says):
    array = np.zeros((3,) if kind == "vector" else (3, 5), np.float32)
    array.reshape(-1)[-1] = value
    with pytest.raises(mdrt.InvalidArgumentError, match=says):
        _core.pack(kind, format, array)


@pytest.mark.parametrize("kind, shape", [("panel", (20, 7, 3, 3)), ("table", (5, 33))])
def test_fp16_rounds_to_nearest_even(kind, shape):
    every_half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every_half[np.isfinite(every_half)].astype(np.float32)
    between = (finite[:-1].astype(np.float64) + finite[1:].astype(np.float64)).astype(np.float32) / 2
    rng = np.random.default_rng(2)
    random = rng.standard_normal(4000).astype(np.float32) * 10.0 ** rng.integers(-9, 4, 4000).astype(np.float32)
    values = np.concatenate([finite, between, np.nextafter(between, np.float32(9)), random]).astype(np.float32)
    size = int(np.prod(shape))
    for start in range(0, len(values), size):
        array = np.resize(values[start : start + size], shape)
        stored = _core.pack(kind, "fp16", array)
        assert stored.dtype == np.float16
        np.testing.assert_array_equal(stored, stored_by_definition(kind, array).astype(np.float16))
        np.testing.assert_array_equal(
            _core.unpack(kind, "fp16", stored, shape), array.astype(np.float16).astype(np.float32)
        )


def test_fp16_keeps_what_is_not_finite():
    array = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    back = _core.unpack("table", "fp16", _core.pack("table", "fp16", array), (1, 4))
    np.testing.assert_array_equal(back, array)
    assert np.signbit(back[0, 3])


def test_fp16_overflow_names_the_largest_value():
    array = np.full((2, 3), 65519.0, np.float32)
    assert _core.pack("panel", "fp16", array).max() == 65504
    array[1, 1] = -70000.5
    with pytest.raises(mdrt.InvalidArgumentError, match=r"65504.*70000\.5"):
        _core.pack("panel", "fp16", array)


@pytest.mark.parametrize("kind, format, shape, says", [
    ("matrix", "fp32", (1,), "matrix"),
    ("panel", "int4", (1, 1), "int4"),
    ("vector", "fp16", (16,), "vector is never stored as fp16"),
    ("vector", "int8", (16,), "vector is never stored as int8"),
    ("panel", "int32", (16, 16), "panel is never stored as int32"),
    ("depthwise", "int8", (16, 3, 3), "depthwise is never stored as int8"),
    ("panel", "fp32", (4,), "1 dimensions"),
    ("vector", "fp32", (0,), "dimension of 0"),
])  # fmt: skip
def test_impossible_weights(kind, format, shape, says):
    with pytest.raises(mdrt.InvalidArgumentError, match=says):
        _core.stored_shape(kind, format, shape)


def test_crc32c():
    assert _core.crc32c(b"123456789") == 0xE3069283  # the check value of the polynomial's standard
    data = np.random.default_rng(3).bytes(1000)
    for start, stop in [(0, 0), (0, 1), (3, 10), (1, 1000)]:
        assert _core.crc32c(data[start:stop]) == crc32c(data[start:stop])
    assert _core.crc32c(data[400:], _core.crc32c(data[:400])) == crc32c(data)


def make_graph():
    graph = mdrt.Graph()
    graph.input("x", ["batch", "height", "width", 5])
    inputs = ["x", "conv.weight", "conv.bias"]
    sizes = {"in_channels": 5, "out_channels": 20, "kernel_size": [3, 3], "stride": [1, 1], "pads": [1, 1, 1, 1]}
    graph.add("conv2d", inputs, name="conv", **sizes)
    graph.add("group_norm", ["conv", "norm.weight", "norm.bias"], name="norm", num_groups=4, num_channels=20, eps=1e-5)
    graph.output("norm", "y")
    rng = np.random.default_rng(4)
    weights = {w.name: rng.standard_normal(w.shape).astype(np.float32) for w in graph.weights.values()}
    return graph, weights


class Lazy:
    """Counts how many weights are in memory at once."""

    alive = most = 0

    def __init__(self, array):
        self._array, self.shape = array, array.shape

    def __array__(self, dtype=None, copy=None):
        Lazy.alive += 1
        Lazy.most = max(Lazy.most, Lazy.alive)
        made = self._array.copy()
        weakref.finalize(made, Lazy.freed)
        return made

    @staticmethod
    def freed():
        Lazy.alive -= 1


INT8 = ComponentFormat("int8", {}, {"conv": (-1.0, 2.0)})


@pytest.mark.parametrize("format", ["fp32", INT8])
def test_memory_and_file_are_the_same_bytes(format, tmp_path):
    graph, weights = make_graph()
    memory = write_bundle(None, {"unet": graph}, {"unet": weights}, formats=format)
    assert memory.dtype == np.uint8 and memory.ctypes.data % 64 == 0
    path = tmp_path / "a.mdrt"
    assert write_bundle(path, {"unet": graph}, {"unet": weights}, formats=format) is None
    assert path.read_bytes() == memory.tobytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mdrt"]
    model = _core.Model(path)
    model.verify()
    stored = {name: array for name, _, _, array in model.tensors()}
    given = weights["conv.weight"]
    expected = (
        stored_by_definition("panel", given)
        if format == "fp32"
        else int8_by_definition("panel", quantise_columns(given)[0])
    )
    np.testing.assert_array_equal(stored["unet/conv.weight"], expected)
    assert all(array.ctypes.data % 64 == 0 for array in stored.values())


def test_format_of_each_weight():
    graph, weights = make_graph()
    buffer = write_bundle(None, {"unet": graph}, {"unet": weights}, formats="fp16")
    dtypes = {name: dtype for name, dtype, _, _ in _core.Model.from_buffer(buffer).tensors()}
    assert dtypes["unet/conv.weight"] == "fp16"
    assert {dtypes[f"unet/{name}"] for name in weights if name != "conv.weight"} == {"fp32"}
    formats = {"unet": ComponentFormat("fp16", {"conv": "fp32"})}
    buffer = write_bundle(None, {"unet": graph}, {"unet": weights}, formats=formats)
    assert {dtype for _, dtype, _, _ in _core.Model.from_buffer(buffer).tensors()} == {"fp32", "uint8"}
    with pytest.raises(mdrt.InvalidArgumentError, match="format of the component unet"):
        write_bundle(None, {"unet": graph}, {"unet": weights}, formats={"vae_decoder": "fp16"})


def test_version_is_the_lowest_that_suffices():
    graph, weights = make_graph()
    components = {"unet": graph, "vae_decoder": graph}, {"unet": weights, "vae_decoder": weights}
    for format, version in (("fp32", [1, 0]), ("fp16", [1, 0]), (INT8, [1, 1])):
        buffer = write_bundle(None, *components, formats={"unet": "fp32", "vae_decoder": format})
        assert json.loads(_core.Model.from_buffer(buffer).metadata())["format"] == version


@pytest.mark.parametrize("change, says", [
    (lambda w: w.pop("conv.bias"), "unet/conv.bias is missing"),
    (lambda w: w.update({"conv.bias": np.zeros(21, np.float32)}), r"unet/conv.bias.*\[21\], not \[20\]"),
    (lambda w: w["conv.weight"].__setitem__(0, 1e6), "unet/conv.weight.*1000000"),
])  # fmt: skip
def test_wrong_weights_leave_the_old_file(change, says, tmp_path):
    graph, weights = make_graph()
    change(weights)
    path = tmp_path / "a.mdrt"
    path.write_bytes(b"old")
    with pytest.raises(mdrt.InvalidArgumentError, match=says):
        write_bundle(path, {"unet": graph}, {"unet": weights}, formats="fp16")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.mdrt"]


def test_unwritable_destination(tmp_path):
    graph, weights = make_graph()
    with pytest.raises(mdrt.FileError, match="missing"):
        write_bundle(tmp_path / "missing" / "a.mdrt", {"unet": graph}, {"unet": weights})


@pytest.mark.parametrize("format", ["fp32", INT8])
def test_one_weight_at_a_time(format, tmp_path):
    graph, weights = make_graph()
    Lazy.alive = Lazy.most = 0
    lazy = {name: Lazy(array) for name, array in weights.items()}
    write_bundle(tmp_path / "a.mdrt", {"unet": graph}, {"unet": lazy}, formats=format)
    assert Lazy.most == 1 and Lazy.alive == 0


def test_rewriting_an_open_bundle_keeps_the_old_one_readable(tmp_path):
    graph, weights = make_graph()
    path = tmp_path / "a.mdrt"
    write_bundle(path, {"unet": graph}, {"unet": weights})
    model = _core.Model(path)
    write_bundle(path, {"unet": graph}, {"unet": {name: array * 2 for name, array in weights.items()}})
    model.verify()
    old = {name: array for name, _, _, array in model.tensors()}["unet/norm.bias"]
    np.testing.assert_array_equal(old[:20], weights["norm.bias"])


def test_mini_writer_agrees_on_layout():
    """The tests' own writer and the library lay a panel out alike, so the reject table judges real files."""
    tensor = weight("panel", (20, 5, 3, 3))
    stored = np.frombuffer(tensor.data, np.float32).reshape(tensor.shape)
    logical = _core.unpack("panel", "fp32", stored, (20, 5, 3, 3))
    np.testing.assert_array_equal(_core.pack("panel", "fp32", logical), stored)


def test_header_is_a_strict_safetensors_header():
    graph, weights = make_graph()
    data = write_bundle(None, {"unet": graph}, {"unet": weights}, provenance={"source": "tests \u00e4\u00df"}).tobytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert (8 + length) % 64 == 0
    header = json.loads(data[8 : 8 + length])
    metadata = json.loads(header.pop("__metadata__")["mdrt"])
    assert metadata["format"] == [1, 0] and metadata["provenance"]["source"] == "tests \u00e4\u00df"
    offset = 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] == offset and entry["data_offsets"][1] % 64 == 0
        begin, offset = entry["data_offsets"]
        if name != "header_crc32c":
            assert metadata["checksums"][name] == f"{crc32c(data[8 + length + begin : 8 + length + offset]):08x}"
    assert 8 + length + offset == len(data)
