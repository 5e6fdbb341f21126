"""The command: exit codes, names, metadata, interruption, failed writes."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from mini_bundle import Bundle, GraphMaker, tiny_bundle
from PIL import Image

import mdrt
from mdrt import _core, models
from mdrt.cli import main
from mdrt.graph import Graph
from weights_tools.convert import convert

DATA = Path(__file__).parent / "data"
PROMPT = "tiger on a blue background"


def command(*arguments, timeout=60, **options):
    return subprocess.run(
        [sys.executable, "-m", "mdrt", *arguments], capture_output=True, timeout=timeout, check=False, **options
    )


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    # Child processes find the package by the path of this one, not by the folder they run in.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, handler)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_version_is_quick():
    result = command("--version")
    assert result.returncode == 0 and result.stdout.decode() == f"mdrt {mdrt.__version__}\n"
    code = "import sys, mdrt.cli\nprint({'numpy', 'PIL', 'safetensors', 'tqdm', 'mdrt._core'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"
    assert _core.version() == mdrt.__version__


def test_picture_and_its_metadata(folder, capsys):
    assert main(["generate", PROMPT, "-o", "tiger.png", "--seed", "7", "--progress", "none"]) == 0
    assert capsys.readouterr() == ("", "")
    assert files(folder) == ["tiger.png"]
    with Image.open("tiger.png") as image:
        assert image.size == (128, 128) and image.mode == "RGB"
        assert json.loads(image.text["mdrt"])["prompt"] == PROMPT
        with mdrt.Pipeline() as pipe:
            assert np.array_equal(np.asarray(image), np.asarray(pipe(PROMPT, seed=7)))
    assert main(["inspect", "tiger.png"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(PROMPT + "\nSteps: 1, ") and '"seed": 7' in printed
    assert main(["inspect", "tiger.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["mdrt"]["seed"] == 7


def test_options_reach_the_picture(capsys):
    options = [
        "--steps",
        "8",
        "--guidance-scale",
        "3",
        "--negative-prompt",
        "red",
        "--size",
        "64x104",
        "--threads",
        "1",
    ]
    assert (
        main(
            [
                "generate",
                "x",
                "-o",
                "a.png",
                "--seed",
                "1",
                *options,
                "--max-memory",
                "1G",
                "--model",
                models.builtin_path(),
            ]
        )
        == 0
    )
    with Image.open("a.png") as image:
        made = json.loads(image.text["mdrt"])
        assert image.size == (64, 104)
    assert (made["num_inference_steps"], made["guidance_scale"], made["negative_prompt"]) == (8, 3, "red")


def test_free_names_and_random_seed(folder, capsys):
    assert main(["generate", PROMPT]) == 0
    out, err = capsys.readouterr()
    assert out == "mdrt-0001.png\n" and err.startswith("seed ")
    assert main(["generate", PROMPT, "--quiet", "--count", "2"]) == 0
    assert capsys.readouterr() == ("mdrt-0002.png\nmdrt-0003.png\n", "")
    with Image.open("mdrt-0001.png") as image:
        assert json.loads(image.text["mdrt"])["seed"] == int(err.split()[1])


def test_numbered_names_and_prompt_files(folder, capsys):
    (folder / "prompts.txt").write_text("red apple\n\npizza 🍕\n", encoding="utf-8")
    assert main(["generate", "--prompts", "prompts.txt", "--count", "2", "-o", "p%02d.png", "--seed", "5"]) == 0
    assert files(folder) == ["p01.png", "p02.png", "p03.png", "p04.png", "prompts.txt"]
    made = []
    for name in files(folder)[:4]:
        with Image.open(name) as image:
            made.append(json.loads(image.text["mdrt"]))
    assert [(m["prompt"], m["seed"]) for m in made] == [
        ("red apple", 5),
        ("red apple", 6),
        ("pizza 🍕", 7),
        ("pizza 🍕", 8),
    ]
    assert main(["generate", "guitar", "--count", "2", "-o", "g.png", "--seed", "5"]) == 0
    assert {"g-1.png", "g-2.png"} <= set(files(folder))


def test_standard_input_and_output(folder):
    result = command("generate", "-o", "-", "--seed", "1", input="tíger 🐯\n".encode())
    assert result.returncode == 0 and result.stderr == b""
    with Image.open(io.BytesIO(result.stdout)) as image:
        assert json.loads(image.text["mdrt"])["prompt"] == "tíger 🐯"
    assert files(folder) == []


def test_progress_as_json():
    result = command("generate", PROMPT, "-o", "a.png", "--seed", "1", "--progress", "json")
    events = [json.loads(line) for line in result.stderr.splitlines()]
    assert events[-1] == {"stage": "done", "step": 1, "total": 1, "fraction": 1.0}


def test_progress_bar():
    result = command("generate", PROMPT, "-o", "a.png", "--seed", "1", "--progress", "bar")
    assert b"100%" in result.stderr or b"%" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["frobnicate"],
        ["generate"],
        ["generate", "x", "--prompts", "y"],
        ["generate", "x", "--size", "100x128"],
        ["generate", "x", "--size", "128"],
        ["generate", "x", "--steps", "0"],
        ["generate", "x", "--steps", "5000"],
        ["generate", "x", "--seed", "-1"],
        ["generate", "x", "--guidance-scale", "nan"],
        ["generate", "x", "--threads", "0"],
        ["generate", "x", "--max-memory", "much"],
        ["generate", "x", "--count", "0"],
        ["generate", "x", "-o", "missing/a.png"],
        ["generate", "x", "-o", "."],
        ["generate", "x", "-o", "a.jpg"],
        ["generate", "x", "-o", "-", "--count", "2"],
        ["generate", "--prompts", "missing.txt"],
        ["generate", "x", "--model", "missing.mdrt"],
        ["generate", "x", "--model", "/etc/passwd"],
        ["generate", "x", "--model", "."],
        ["inspect", "missing.mdrt"],
        ["inspect", "."],
        ["bench", "everything"],
        ["bench", "all", "--size", "100x100"],
        ["convert", "missing", "-o", "a.mdrt"],
        ["new", "--preset", "mobilediffusion", "--set", "nonsense", "-o", "a"],
    ],
    ids=" ".join,
)
def test_bad_input(arguments, folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    try:
        code = main(arguments)
    except SystemExit as usage:
        code = usage.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err
    assert files(folder) == []


@pytest.mark.parametrize("text", [b"caf\xe9", b"", b"  \n", b"a\0b"], ids=repr)
def test_bad_prompts_on_standard_input(text, folder):
    result = command("generate", "-o", "a.png", input=text)
    assert result.returncode == 2 and result.stderr and b"Traceback" not in result.stderr
    assert files(folder) == []


def test_prompt_that_is_not_utf8():
    result = command("generate", b"caf\xe9", "-o", "a.png")
    assert result.returncode == 2 and b"Unicode" in result.stderr


def test_too_little_memory(folder, capsys):
    assert main(["generate", PROMPT, "-o", "a.png", "--max-memory", "100K"]) == 1
    assert "memory" in capsys.readouterr().err and files(folder) == []


def test_full_device_is_a_failure(folder, capsys):
    (folder / "full.png").symlink_to("/dev/full")
    assert main(["generate", PROMPT, "-o", "full.png", "--seed", "1"]) == 1
    assert "cannot write full.png: No space left on device" in capsys.readouterr().err


def test_device_is_not_replaced(folder):
    (folder / "null.png").symlink_to("/dev/null")
    assert main(["generate", PROMPT, "-o", "null.png", "--seed", "1"]) == 0
    assert (folder / "null.png").is_char_device()


@pytest.mark.parametrize(
    ("call", "error"), [("open", 13), ("open", 30), ("fsync", 5), ("fsync", 28), ("replace", 28)], ids=str
)
def test_failed_write_leaves_the_old_file(call, error, folder, capsys, monkeypatch):
    (folder / "a.png").write_bytes(b"old")

    def fail(*_):
        raise OSError(error, os.strerror(error))

    with monkeypatch.context() as context:
        context.setattr(os, call, fail)
        assert main(["generate", PROMPT, "-o", "a.png", "--seed", "1"]) == 1
    assert f"cannot write a.png: {os.strerror(error)}" in capsys.readouterr().err
    assert files(folder) == ["a.png"] and (folder / "a.png").read_bytes() == b"old"
    assert main(["generate", PROMPT, "-o", "a.png", "--seed", "1"]) == 0
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_interrupted(number, folder):
    arguments = ["generate", PROMPT, "--count", "1000", "--steps", "20", "-o", "a.png", "--progress", "json"]

    def hear_interrupts():
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs inherit deafness to it

    command = [sys.executable, "-m", "mdrt", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=hear_interrupts) as process:  # noqa: PLW1509
        process.stderr.readline()  # the work has begun
        time.sleep(0.3)
        process.send_signal(number)
        begin = time.monotonic()
        rest = process.communicate(timeout=10)[1]
    assert time.monotonic() - begin < 2
    assert process.returncode == 130
    assert b"Traceback" not in rest and rest.endswith(b"mdrt: interrupted\n")
    assert all(name.startswith("a-") for name in files(folder))  # whole pictures, no temporary file


def test_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([sys.executable, "-m", "mdrt", "info"], stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        error = process.stderr.read()
    assert process.returncode == 1 and error == b""


def test_inspect_bundle(capsys, folder):
    assert main(["inspect", models.builtin_path(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["components"]) >= {"text_encoder", "unet", "vae_decoder"}
    parameters = found["components"]["unet"]["parameters"] / 1e6
    assert main(["inspect", models.builtin_path(), "--verify"]) == 0
    text = capsys.readouterr().out
    assert "format 1.2" in text and "checksums: all match" in text and f"unet: {parameters:.1f} M parameters" in text
    with open(models.builtin_path(), "rb") as file:
        data = bytearray(file.read())
    data[-100_000] ^= 4
    (folder / "rotten.mdrt").write_bytes(data)
    assert main(["inspect", "rotten.mdrt"]) == 0
    capsys.readouterr()
    assert main(["inspect", "rotten.mdrt", "--verify"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "checksum" in err.lower()


def test_inspect_tells_the_format_of_layers(capsys, folder):
    bundle = tiny_bundle(int8=True)
    (folder / "int8.mdrt").write_bytes(bundle.to_bytes())
    assert main(["inspect", "int8.mdrt", "--json"]) == 0
    unet = json.loads(capsys.readouterr().out)["components"]["unet"]
    assert unet["layers_by_format"] == {"int8": ["time.proj", "conv_in", "conv_out"]}
    assert unet["parameters"] == 16 * 16 + 16 + 16 * 4 * 9 + 16 + 16 + 16 + 16 * 9 + 4 * 16 + 4
    assert main(["inspect", "int8.mdrt"]) == 0
    assert "layers: int8 3\n" in capsys.readouterr().out

    mixed = GraphMaker("mixed")
    mixed.input("x", ["batch", "length", 16])
    for index, int8 in enumerate((False, True, True)):
        mixed.output(f"y{index}", mixed.linear(f"fc{index}", "x", 16, 16, int8))
    document = {**bundle.document, "components": {"mixed": mixed.document()}}
    del document["pipeline"], document["tokenizer"]
    (folder / "mixed.mdrt").write_bytes(Bundle(document, mixed.tensors).to_bytes())
    assert main(["inspect", "mixed.mdrt"]) == 0
    assert "layers: int8 2, fp32 1\n    fp32: fc0\n" in capsys.readouterr().out


def test_inspect_picture_without_metadata(capsys):
    Image.new("RGB", (4, 4)).save("plain.png")
    assert main(["inspect", "plain.png"]) == 2
    assert "says nothing" in capsys.readouterr().err
    with open("plain.png", "rb") as file:
        data = file.read()
    with open("cut.png", "wb") as file:
        file.write(data[:40])
    assert main(["inspect", "cut.png"]) == 2


def test_info(capsys):
    assert main(["info"]) == 0
    assert "isa generic: " in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == mdrt.__version__


def test_bench(capsys):
    assert main(["bench", "all", "--repeats", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["stages"]) == {"text_encoder", "unet", "vae_decoder"}
    assert found["stages"]["unet"]["seconds"] > 0 and found["peak_rss_bytes"] > 10**6
    assert main(["bench", "unet", "--repeats", "1", "--size", "64x64"]) == 0
    assert "GMAC/s" in capsys.readouterr().out


def test_bench_counts_multiply_adds(capsys, folder):
    convert(DATA / "micro-a", folder / "micro.mdrt", steps=[1])
    assert main(["bench", "vae_decoder", "--model", "micro.mdrt", "--repeats", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["vae_decoder"]["gmac"] == pytest.approx(0.209, abs=0.001)


def test_bench_profile(capsys):
    assert main(["bench", "unet", "--repeats", "2", "--profile", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["stages"]["unet"]
    steps = found["profile"]["steps"]
    assert all(step["seconds"] > 0 and step["tasks"] >= 1 for step in steps)
    assert sum(step["gmac"] for step in steps) == pytest.approx(found["gmac"], abs=0.001)
    (conv_in,) = (step for step in steps if step["value"] == "conv_in")
    channels = Graph.load(models.builtin_path(), "unet").weights["conv_in.weight"].shape[0]
    assert conv_in["layer"] == f"conv2d 3x3 8->{channels}, 256 pixels, fp16"
    assert conv_in["gmac"] == pytest.approx(1e-9 * 9 * 8 * channels * 256)
    for groups in (found["profile"]["kernels"], found["profile"]["layers"]):
        assert sum(group["share"] for group in groups) == pytest.approx(1)
        assert sum(group["steps"] for group in groups) == len(steps)
    assert main(["bench", "text_encoder", "--repeats", "1", "--profile"]) == 0
    assert "by kernel" in capsys.readouterr().out


def test_selftest(capsys):
    assert main(["selftest"]) == 0
    assert capsys.readouterr().out.endswith("passed\n")


def test_every_command_has_help(capsys):
    for name in ("generate", "convert", "new", "compare", "inspect", "info", "bench", "selftest"):
        with pytest.raises(SystemExit) as caught:
            main([name, "--help"])
        assert caught.value.code == 0 and capsys.readouterr().out
