"""The must-reject table and its must-accept twins, through the C entry points and through Python."""

import copy
import ctypes
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from mini_bundle import Bundle, GraphMaker
from reject_rows import BASE, BASE_INT8, BUNDLE, ROWS, SOUND, VERSION, entry_of, patched, tensor

import mdrt
from mdrt import _core

OK, IO = 0, 2
EXCEPTIONS = {BUNDLE: mdrt.BundleError, VERSION: mdrt.VersionError}


@pytest.fixture(scope="module")
def library():
    lib = ctypes.CDLL(str(mdrt.get_library()))
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    lib.mdrt_open.argtypes = [text, pointer, ctypes.POINTER(pointer), text, size]
    lib.mdrt_open_memory.argtypes = [pointer, size, pointer, ctypes.POINTER(pointer), text, size]
    lib.mdrt_verify.argtypes = lib.mdrt_close.argtypes = [pointer]
    lib.mdrt_error_message.argtypes, lib.mdrt_error_message.restype = [pointer], text
    return lib


def aligned(data):
    buffer = np.zeros(len(data) + 64, np.uint8)
    start = -buffer.ctypes.data % 64
    view = buffer[start : start + len(data)]
    view[:] = np.frombuffer(data, np.uint8)
    return view


def open_memory(library, data):
    view = aligned(data + b"\0")  # one byte more: NumPy gives an empty array no address
    model, message = ctypes.c_void_p(), ctypes.create_string_buffer(512)
    status = library.mdrt_open_memory(view.ctypes.data, len(data), None, ctypes.byref(model), message, len(message))
    assert (model.value is None) == (status != OK)
    library.mdrt_close(model)
    return status, message.value.decode()


def open_path(library, path):
    model, message = ctypes.c_void_p(), ctypes.create_string_buffer(512)
    status = library.mdrt_open(os.fsencode(path), None, ctypes.byref(model), message, len(message))
    assert (model.value is None) == (status != OK)
    library.mdrt_close(model)
    return status, message.value.decode()


def test_table_is_complete():
    assert len({row.name for row in ROWS}) == len(ROWS) >= 77
    assert len(SOUND) < 65536


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rejected(row, library, tmp_path):
    data = row.file(sound=False)
    path = tmp_path / "bad.mdrt"
    path.write_bytes(data)
    status, message = open_memory(library, data)
    assert status == row.status, message
    assert [word for word in row.says if word not in message] == [], message
    by_path = open_path(library, path)
    assert by_path == (status, f"{path}: {message}")
    with pytest.raises(EXCEPTIONS[row.status]) as error:
        _core.Model(path)
    assert str(error.value) == by_path[1]


@pytest.mark.parametrize("row", [row for row in ROWS if row.good], ids=lambda row: row.name)
def test_twin_accepted(row, library, tmp_path):
    data = row.file(sound=True)
    status, message = open_memory(library, data)
    assert (status, message) == (OK, "")
    path = tmp_path / "good.mdrt"
    path.write_bytes(data)
    _core.Model(path).verify()


def test_sound_bundle_is_a_safetensors_file(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    assert set(safetensors.load(SOUND)) == {name for name, *_ in _core.Model.from_buffer(aligned(SOUND)).tensors()}


def test_memory_must_be_aligned(library):
    view = aligned(SOUND + bytes(64))[1:]
    model, message = ctypes.c_void_p(), ctypes.create_string_buffer(512)
    status = library.mdrt_open_memory(view.ctypes.data, len(SOUND), None, ctypes.byref(model), message, len(message))
    assert status == 1 and b"aligned to 64 bytes" in message.value


@pytest.mark.parametrize("make, says", [
    (lambda path: None, "cannot be opened"),
    (lambda path: path.mkdir(), "not a regular file"),
    (os.mkfifo, "not a regular file"),
], ids=["missing", "folder", "FIFO"])  # fmt: skip
def test_what_is_no_file(make, says, library, tmp_path):
    path = tmp_path / "bundle.mdrt"
    make(path)
    status, message = open_path(library, path)
    assert status == IO and says in message and str(path) in message
    with pytest.raises(mdrt.FileError):
        _core.Model(path)


def test_locked_by_a_writer(library, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "bundle.mdrt"
    path.write_bytes(SOUND)
    with open(path, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, message = open_path(library, path)
        assert status == IO and "another process" in message
    assert open_path(library, path)[0] == OK


def test_every_bit_of_the_header_counts(library):
    """Flips every bit of length, header and header_crc32c: rejected, or found by verify."""
    view = aligned(SOUND)
    end = 8 + int.from_bytes(SOUND[:8], "little") + 64
    passed = []
    for position in range(end):
        for bit in (1 << (position % 8), 1 << ((position + 5) % 8)):
            view[position] ^= bit
            model = ctypes.c_void_p()
            if library.mdrt_open_memory(view.ctypes.data, len(SOUND), None, ctypes.byref(model), None, 0) == OK:
                if library.mdrt_verify(model) != BUNDLE:
                    passed.append(position)
                library.mdrt_close(model)
            view[position] ^= bit
    assert passed == []


def test_flipped_data_is_found(library):
    view = aligned(SOUND)
    generator = np.random.default_rng(5)
    begin = 8 + int.from_bytes(SOUND[:8], "little") + 64
    for position in generator.integers(begin, len(SOUND), 300):
        view[position] ^= 1 << generator.integers(8)
        model = ctypes.c_void_p()
        if library.mdrt_open_memory(view.ctypes.data, len(SOUND), None, ctypes.byref(model), None, 0) == OK:
            assert library.mdrt_verify(model) == BUNDLE
            assert b"checksum" in library.mdrt_error_message(model)
            library.mdrt_close(model)
        view[:] = np.frombuffer(SOUND, np.uint8)


def test_verify_finds_padding_that_is_not_zero():
    """The writer's checksum may be right and the padding still wrong."""
    places = [
        (BASE, "unet/conv_in.weight", -4),
        (BASE, "unet/conv_in.weight", 5 * 64),
        (BASE, "unet/conv_out.bias", -4),
        (BASE, "text_encoder/token", 124),
        (BASE_INT8, "unet/conv_in.weight", 64),  # channel 4 of column 0
        (BASE_INT8, "unet/conv_in.weight", -1),
        (BASE_INT8, "unet/conv_out.weight", 16),  # column 4 of 4
        (BASE_INT8, "unet/conv_out.weight_scale", -4),
        (BASE_INT8, "unet/conv_in.input_zero_point", 4),
        (BASE_INT8, "text_encoder/token", 16),
    ]
    for base, name, position in places:
        bundle = copy.deepcopy(base)
        data = bytearray(bundle.tensors[name].data)
        data[position if position >= 0 else len(data) + position] = 1
        bundle.tensors[name].data = bytes(data)
        model = _core.Model.from_buffer(aligned(bundle.to_bytes()))
        with pytest.raises(mdrt.BundleError, match="padding"):
            model.verify()


@pytest.mark.parametrize("change, says", [
    (entry_of("unet/conv_in.weight_sum", 2, 1, "i"), r"conv_in.*weight_sum.*entry 2 is 1, the weights' sum is"),
    (entry_of("text_encoder/fc1.weight_sum", 15, 2032, "i"), r"fc1.*weight_sum.*entry 15 is 2032, the weights' sum is"),
    (tensor("unet/conv_in.weight", data=patched(0, b"\x80")), r"conv_in.*conv_in\.weight.*byte 0 is -128"),
    (tensor("vae_decoder/conv_out.weight", data=patched(7, b"\x80")), r"conv_out.*conv_out\.weight.*byte 7 is -128"),
    (tensor("text_encoder/token", data=patched(65, b"\x80")), r"embeddings.*token.*byte 65 is -128"),
    (tensor("text_encoder/position", data=patched(0, b"\x80")), r"embeddings.*position.*byte 0 is -128"),
], ids=["sum of a convolution", "sum of a linear layer", "weight", "weight alone", "token", "position"])  # fmt: skip
def test_verify_compares_int8_weights_with_their_sums(change, says):
    """Checksums are right: only a wrong writer makes such a file."""
    bundle = copy.deepcopy(BASE_INT8)
    change(bundle)
    model = _core.Model.from_buffer(aligned(bundle.to_bytes()))
    with pytest.raises(mdrt.BundleError, match=says):
        model.verify()


def test_int8_weights_are_read_as_they_were_written():
    model = _core.Model.from_buffer(aligned(BASE_INT8.to_bytes()))
    model.verify()
    found = {name: array for name, _, _, array in model.tensors()}
    for name in ("unet/conv_in", "unet/conv_out", "unet/time.proj", "text_encoder/fc1"):
        out = {"unet/conv_out": 4}.get(name, 16)
        shape = {"unet/conv_in": (16, 4, 3, 3), "unet/conv_out": (4, 16, 1, 1)}.get(name, (16, 16))
        weights = _core.unpack("panel", "int8", found[f"{name}.weight"], shape)
        np.testing.assert_array_equal(weights.reshape(out, -1).sum(1), found[f"{name}.weight_sum"][:out])
        np.testing.assert_array_equal(_core.pack("panel", "int8", weights), found[f"{name}.weight"])


def worst_headers():
    """Headers of 4 MiB that cost a parser the most."""
    room = 2**22 - 200
    yield "numbers", b'{"a":[' + b"1," * (room // 2) + b"1]}"
    yield "lists", b'{"a":[' + b"[]," * (room // 3) + b"1]}"
    yield "escapes", b'{"a":"' + b"\\n" * (room // 2) + b'"}'
    yield "floats", b'{"a":[' + b"1.2345678901234567e-300," * (room // 24) + b"1]}"
    yield "keys", b"{" + b",".join(b'"%x":1' % i for i in range(380_000)) + b"}"
    yield "keys with long prefixes", b"{" + b",".join(b'"' + b"a" * 200 + b'%x":1' % i for i in range(20_000)) + b"}"


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in worst_headers()])
def test_worst_header_costs_little(text, library):
    text += b" " * (-(len(text) + 8) % 64)
    assert len(text) + 8 <= 2**22
    data = len(text).to_bytes(8, "little") + text
    begin = time.process_time()
    assert open_memory(library, data)[0] == BUNDLE
    assert time.process_time() - begin < 0.5  # about 0.05 s here; slow boards and busy machines need room


def doubling(count):
    """4 channels, `count` times beside themselves: a small file that asks for a lot."""
    maker = GraphMaker("unet")
    maker.input("sample", ["batch", "height", "width", 4])
    value = "sample"
    for i in range(count):
        value = maker.node("concat", f"double{i}", [value, value])
    maker.output("out", value)
    document = {"format": [1, 0], "components": {"unet": maker.document()}}
    document["provenance"] = {"source": "", "license": "", "converter": ""}
    return Bundle(document, {}).to_bytes()


def test_small_file_giant_work():
    """10^5 channels against 1 GiB: refused with both numbers before anything large is allocated; its twin runs."""
    model = _core.Model.from_buffer(aligned(doubling(15)), max_memory=2**30)
    with pytest.raises(mdrt.MemoryLimitError, match=r"needs \d+\.\d MB .* limit is \d+\.\d MB"):
        model.run("unet", {"sample": np.zeros((1, 256, 256, 4), np.float32)}, ["out"])
    assert model.run("unet", {"sample": np.ones((1, 1, 2, 4), np.float32)}, ["out"])["out"].shape == (1, 1, 2, 4 << 15)
    with pytest.raises(mdrt.Error):
        _core.Model.from_buffer(aligned(doubling(40)))


def test_no_other_file_is_opened(tmp_path):
    """Opening a bundle opens that file and nothing else."""
    path = tmp_path / "bundle.mdrt"
    path.write_bytes(SOUND)
    script = (
        "import os, sys, mdrt; from mdrt import _core\n"
        "def files(): return {os.readlink(e.path) for e in os.scandir('/proc/self/fd') if os.path.exists(e.path)}\n"
        "before = files(); model = _core.Model(sys.argv[1])\n"
        "print([f for f in files() - before if not f.startswith('/proc/')])"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(path)], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == str([str(path)])
