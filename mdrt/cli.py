"""The command `mdrt`: arguments -> calls -> exit code (0 done, 1 failed, 2 bad input, 130 interrupted)."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from mdrt import __version__, errors

if TYPE_CHECKING:
    from mdrt.pipeline import Event, Pipeline

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

_BAD_INPUT = (
    errors.InvalidArgumentError,
    errors.FileError,
    errors.BundleError,
    errors.VersionError,
    errors.ConversionError,
    errors.UnsupportedError,
)
_NUMBER = re.compile(r"%(0?\d*)d")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    handler: Callable[[argparse.Namespace], int] = options.handler
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a prompt or a name may not fit the terminal's encoding
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        code = handler(options)
        sys.stdout.flush()
        return code
    except (errors.Cancelled, KeyboardInterrupt):
        print("mdrt: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away; keep the interpreter from complaining about the same when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except errors.Error as error:
        print(f"mdrt: {error}", file=sys.stderr)
        bad_input = isinstance(error, _BAD_INPUT) and not isinstance(error, errors.WriteError)
        return EXIT_BAD_INPUT if bad_input else EXIT_FAILED
    except ImportError as error:
        print(f"mdrt: {error}", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mdrt", description="A prompt becomes a picture on a CPU.")
    parser.add_argument("--version", action="version", version=f"mdrt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_convert(commands)
    _add_new(commands)
    _add_compare(commands)
    _add_inspect(commands)
    _add_info(commands)
    _add_bench(commands)
    _add_selftest(commands)
    return parser


def _add_generate(commands: Any) -> None:
    command = commands.add_parser("generate", help="make pictures from a prompt")
    command.set_defaults(handler=_generate, usage_error=command.error)
    add = command.add_argument
    add("prompt", nargs="?", help="the text; read from standard input when left out")
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="PNG file; - is standard output; %%d is the picture's number; default: a free name",
    )
    add("--prompts", metavar="FILE", help="a prompt on each line")
    add("--count", type=_positive, default=1, metavar="N", help="pictures of each prompt")
    add("--steps", type=_positive, metavar="N", help="model calls")
    add("--guidance-scale", type=float, metavar="G", help="1 or less: no guidance")
    add("--negative-prompt", default="", metavar="TEXT", help="what guidance leads away from")
    add("--seed", type=int, metavar="N", help="0 to 2**64 - 1; default: a random one, printed")
    add("--size", type=_size, default=(None, None), metavar="WxH", help="pixels")
    add("--progress", choices=["bar", "json", "none"], help="on standard error; default: a bar on a terminal")
    add("--quiet", action="store_true", help="print nothing but errors and a name that you did not choose")
    _add_model(command)
    _add_machine(command)


def _add_convert(commands: Any) -> None:
    command = commands.add_parser("convert", help="turn a diffusers pipeline directory into a bundle")
    command.set_defaults(handler=_convert)
    add = command.add_argument
    add("source", metavar="SRC", help="a diffusers pipeline directory")
    add("-o", "--output", required=True, metavar="OUT.mdrt")
    add("--format", choices=["fp32", "fp16", "int8"], default="fp32", help="of the large weights")
    add("--calibrate", metavar="FILE", help="int8: prompts to calibrate with, one on each line; default: our own")
    add("--report", metavar="FILE", help="int8: format and error of every layer, as JSON")
    add("--threads", type=_positive, metavar="N", help="of calibration; default: MDRT_THREADS, else the physical cores")
    add("--with-encoder", action="store_true", help="include the VAE encoder")
    add("--steps", type=_positive, nargs="+", metavar="N", help="stored schedules; the first is the default")
    add("--scheduler", nargs="+", metavar="NAME", help="one for all counts, or one for each")
    add("--guidance-scale", type=float, nargs="+", metavar="G", help="one for all counts, or one for each")
    add("--size", type=_size, metavar="WxH", help="default size of the pictures")
    add("--license", default="", metavar="TEXT", help="of the weights, kept in the bundle")


def _add_new(commands: Any) -> None:
    command = commands.add_parser("new", help="write a checkpoint with random weights")
    command.set_defaults(handler=_new)
    add = command.add_argument
    add("--preset", choices=["mobilediffusion", "mobilediffusion-lite"], required=True)
    add(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a configuration value, such as unet.attention_head_dim=32",
    )
    add("--tokenizer", metavar="DIR", help="take the vocabulary from here; default: a made-up one")
    add("-o", "--output", required=True, metavar="DIR")


def _add_compare(commands: Any) -> None:
    command = commands.add_parser("compare", help="tell how far the stages and pictures of two bundles are apart")
    command.set_defaults(handler=_compare)
    add = command.add_argument
    add("a", metavar="A.mdrt", help="the yardstick: its values are the inputs of both")
    add("b", metavar="B.mdrt")
    add("--prompts", metavar="FILE", help="a prompt on each line; default: four of our own")
    add("--steps", type=_positive, metavar="N", help="model calls; default: those of A")
    add("--seed", type=int, default=0, metavar="N", help="of the first picture; default: 0")
    add("--json", action="store_true")
    _add_machine(command)


def _add_inspect(commands: Any) -> None:
    command = commands.add_parser("inspect", help="tell what is in a bundle, or how a picture was made")
    command.set_defaults(handler=_inspect)
    command.add_argument("file", help="a bundle or a PNG file")
    command.add_argument("--verify", action="store_true", help="compare all checksums of a bundle")
    command.add_argument("--json", action="store_true")


def _add_info(commands: Any) -> None:
    command = commands.add_parser("info", help="tell about this installation and this machine")
    command.set_defaults(handler=_info)
    command.add_argument("--json", action="store_true")


def _add_bench(commands: Any) -> None:
    command = commands.add_parser("bench", help="measure the stages of a model, or kernels")
    command.set_defaults(handler=_bench, usage_error=command.error)
    add = command.add_argument
    add("what", choices=["all", "text_encoder", "unet", "vae_decoder", "kernels"])
    add("--size", type=_size, default=(None, None), metavar="WxH", help="pixels")
    add("--repeats", type=_positive, default=5, metavar="N", help="runs after one to warm up")
    add("--profile", action="store_true", help="also the time of every step of the plans, by kernel and by layer")
    add("--isa", metavar="NAME", help="an instruction set that mdrt info lists; default: MDRT_ISA, else the best")
    add("--filter", metavar="TEXT", help="kernels: layers that contain this, such as 'conv2d 3x3'")
    add(
        "--format",
        choices=["fp32", "fp16", "int8", "int8_weights"],
        metavar="FORMAT",
        help="kernels: of the weights, fp32, fp16, int8 (default: all three) or int8_weights, which meet floats",
    )
    add("--json", action="store_true")
    _add_model(command)
    _add_machine(command)


def _add_selftest(commands: Any) -> None:
    command = commands.add_parser("selftest", help="compare kernels and pictures with their references on this machine")
    command.set_defaults(handler=_selftest)
    command.add_argument("--json", action="store_true")
    command.add_argument("--threads", type=_positive, metavar="N")


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", metavar="FILE", help="a bundle; default: the built-in model")


def _add_machine(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--threads", type=_positive, metavar="N", help="default: MDRT_THREADS, else the physical cores"
    )
    command.add_argument(
        "--max-memory", type=_bytes, metavar="BYTES", help="such as 512M or 1G; default: what is available"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,6})[xX](\d{1,6})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 512x512")
    return int(match[1]), int(match[2])


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not an amount of memory such as 512M or 1G")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _generate(options: argparse.Namespace) -> int:
    prompts = _prompts(options)
    count = len(prompts) * options.count
    name = _check_output(options.output, count)
    if options.quiet:
        import logging

        logging.getLogger("mdrt").setLevel(logging.ERROR)
    from mdrt.pipeline import Pipeline

    with Pipeline(options.model, threads=options.threads, max_memory=options.max_memory) as pipe:
        seed = options.seed
        for number in range(count):
            image = _picture(pipe, options, prompts[number // options.count], None if seed is None else seed + number)
            if seed is None:
                seed = pipe.last_seed
                if not options.quiet:
                    print(f"seed {seed}", file=sys.stderr)
            _save(image, name, number + 1)
    return 0


def _picture(pipe: Pipeline, options: argparse.Namespace, prompt: str, seed: int | None) -> Any:
    show, end = _progress(options)
    try:
        return pipe(
            prompt,
            negative_prompt=options.negative_prompt,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance_scale,
            width=options.size[0],
            height=options.size[1],
            seed=seed,
            callback=show,
        )
    finally:
        end()


def _prompts(options: argparse.Namespace) -> list[str]:
    from mdrt import prompts

    if options.prompts is not None:
        if options.prompt is not None:
            options.usage_error("give either a prompt or --prompts, not both")
        return prompts.read(options.prompts)
    if options.prompt is not None:
        return [options.prompt]
    if sys.stdin is None or sys.stdin.isatty():
        options.usage_error("a prompt is needed")
    prompt = prompts.decode(sys.stdin.buffer.read()).strip()
    if not prompt:
        options.usage_error("a prompt is needed; standard input was empty")
    return [prompt]


def _check_output(output: str | None, count: int) -> str | None:
    """The output's name with a %d when there are several; refused before the work begins if it cannot become a file."""
    if output == "-":
        if count > 1:
            raise errors.InvalidArgumentError("several pictures do not fit one standard output; use a name with %d")
        if sys.stdout.isatty():
            raise errors.InvalidArgumentError("standard output is a terminal; use -o FILE")
        return output
    folder = os.path.dirname(output or "") or "."
    if not os.path.isdir(folder):
        raise errors.InvalidArgumentError(f"the folder {folder} does not exist")
    if output is None:
        return None
    if os.path.isdir(output):
        raise errors.InvalidArgumentError(f"{output} is a folder; name a file in it")
    root, extension = os.path.splitext(output)
    if extension.lower() != ".png" and not os.path.exists(output):
        raise errors.InvalidArgumentError(f"pictures are PNG files: use {root}.png")
    return output if count == 1 or _NUMBER.search(os.path.basename(output)) else f"{root}-%d{extension}"


def _save(image: Any, name: str | None, number: int) -> None:
    from mdrt import png

    if name == "-":
        target: str | BinaryIO = sys.stdout.buffer
    elif name is None:
        target = next(free for n in range(1, 10**9) if not os.path.exists(free := f"mdrt-{n:04d}.png"))
    else:
        folder, base = os.path.split(name)
        target = os.path.join(folder, _NUMBER.sub(lambda match: format(number, f"{match[1]}d"), base, count=1))
    png.write(image, target)
    if name is None:
        print(target, flush=True)


def _progress(options: argparse.Namespace) -> tuple[Callable[[Event], None] | None, Callable[[], None]]:
    """What to call with every event, and at the end."""
    kind = options.progress or ("bar" if sys.stderr.isatty() and not options.quiet else "none")
    if kind == "none":
        return None, lambda: None
    if kind == "json":
        keys = ("stage", "step", "total", "fraction")
        return (
            lambda event: print(json.dumps({key: getattr(event, key) for key in keys}), file=sys.stderr, flush=True),
            lambda: None,
        )
    from tqdm import tqdm

    bar = tqdm(total=100.0, leave=False, bar_format="{desc:<14}{percentage:3.0f}% |{bar}| {elapsed}<{remaining}")

    def show(event: Event) -> None:
        bar.set_description_str(event.stage, refresh=False)
        bar.update(100 * event.fraction - bar.n)

    return show, bar.close


def _convert(options: argparse.Namespace) -> int:
    from mdrt import files, prompts
    from weights_tools import quantise
    from weights_tools.convert import convert

    if options.report is not None and options.format != "int8":
        raise errors.InvalidArgumentError("--report tells about int8; add --format int8")
    choices = convert(
        options.source,
        options.output,
        format=options.format,
        with_encoder=options.with_encoder,
        steps=options.steps,
        scheduler=options.scheduler,
        guidance_scale=options.guidance_scale,
        size=options.size,
        license=options.license,
        calibration_prompts=None if options.calibrate is None else prompts.read(options.calibrate),
        threads=options.threads,
    )
    if choices is None:
        return 0
    report = quantise.report(choices)
    if options.report is not None:
        with files.replacing(options.report) as file:
            file.write(json.dumps(report, indent=2).encode())
    return _print(report, False, quantise.text)


def _new(options: argparse.Namespace) -> int:
    from weights_tools.new import new

    new(
        options.output,
        preset=options.preset,
        settings=dict(_setting(text) for text in options.set),
        tokenizer=options.tokenizer,
    )
    return 0


def _setting(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    if not separator:
        raise errors.InvalidArgumentError(f"--set {text}: KEY=VALUE is needed")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def _compare(options: argparse.Namespace) -> int:
    from mdrt import compare, prompts

    results = compare.run(
        options.a,
        options.b,
        prompts=None if options.prompts is None else prompts.read(options.prompts),
        num_inference_steps=options.steps,
        seed=options.seed,
        threads=options.threads,
        max_memory=options.max_memory,
    )
    return _print(results, options.json, compare.text)


def _inspect(options: argparse.Namespace) -> int:
    from mdrt import describe

    return _print(describe.file(options.file, verify=options.verify), options.json, describe.file_text)


def _info(options: argparse.Namespace) -> int:
    from mdrt import describe

    return _print(describe.installation(), options.json, describe.installation_text)


def _bench(options: argparse.Namespace) -> int:
    from mdrt import bench, bench_kernels
    from mdrt.formats import FORMATS

    if options.what == "kernels":
        if options.model or options.max_memory or options.profile or options.size != (None, None):
            options.usage_error("kernels: --model, --size, --max-memory and --profile are for stages of a model")
        kernels = bench_kernels.run(
            filter=options.filter or "",
            formats=[options.format] if options.format else FORMATS,
            isa=options.isa,
            threads=options.threads,
            repeats=options.repeats,
        )
        return _print(kernels, options.json, bench_kernels.text)
    if options.filter or options.format:
        options.usage_error("--filter and --format are for kernels")
    results = bench.run(
        options.what,
        model=options.model,
        width=options.size[0],
        height=options.size[1],
        threads=options.threads,
        max_memory=options.max_memory,
        isa=options.isa,
        repeats=options.repeats,
        steps=options.profile,
    )
    return _print(results, options.json, bench.text)


def _selftest(options: argparse.Namespace) -> int:
    from mdrt import selftest

    results = selftest.run(threads=options.threads)
    _print(results, options.json, selftest.text)
    return 0 if results["passed"] else EXIT_FAILED


def _print(results: dict[str, Any], as_json: bool, text: Callable[[dict[str, Any]], str]) -> int:
    print(json.dumps(results, ensure_ascii=False, indent=2) if as_json else text(results))
    return 0
