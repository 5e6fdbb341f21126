"""`python -m weights_tools.training STAGE --config FILE.json -o FOLDER`: one stage of a training."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mdrt.errors import Error, InvalidArgumentError
from weights_tools.checkpoint import read_json
from weights_tools.training.stage import Context
from weights_tools.training.stages import STAGES, run_stage


def main(arguments: list[str] | None = None) -> int:
    """Runs a stage; returns 0, or 1 after printing what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m weights_tools.training", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", type=Path, help="JSON file of the stage's settings; without it their defaults")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder of the run, common to all stages")
    parser.add_argument("--minutes", type=float, help="stop after so long, to go on later with --resume")
    parser.add_argument("--device", help="cpu, cuda, ...: by default an accelerator if there is one")
    parser.add_argument("--processes", type=int, default=1, help="how many share each batch; on CPUs one for each core")
    parser.add_argument("--resume", action="store_true", help="go on from the stage's full checkpoint, if there is one")
    options = parser.parse_args(arguments)
    try:
        settings = {} if options.config is None else read_json(options.config)
        options.output.mkdir(parents=True, exist_ok=True)
        context = Context(
            options.stage, settings, options.output, options.minutes, _device(options.device), options.resume, _say
        )
        _run(context, options.processes)
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(context: Context, processes: int) -> None:
    if processes == 1:
        run_stage(context)
        return
    from weights_tools.training import workers

    with workers.together(processes, context):
        run_stage(context)


def _device(name: str | None) -> str:
    try:
        import torch
    except ImportError as error:
        raise InvalidArgumentError("training needs PyTorch: pip install 'mdrt[train]'") from error
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
