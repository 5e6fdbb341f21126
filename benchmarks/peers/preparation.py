"""What is made once and kept in the work folder: a virtual environment for each peer, and its models.

A step that succeeded is not repeated. One that failed leaves NAME.failed with what it printed, and is tried again when
that is removed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from peers.processes import HERE, last_line

REPOSITORY = HERE.parent

# One environment per runtime: their needs contradict each other. Models are made from PyTorch in `convert`.
PACKAGES: dict[str, tuple[str, ...]] = {
    "convert": (f"{REPOSITORY}[export]", "openvino", "nncf", "pnnx"),
    "onnxruntime": ("onnxruntime", "onnx"),
    "openvino": ("openvino",),
    "ncnn": ("ncnn",),
    "mnn": ("MNN",),
}

# Recipes run in `convert` but for these.
_ENVIRONMENT = {"onnx-int8-qdq": "onnxruntime", "onnx-int8-dynamic": "onnxruntime", "mnn-fp32": "mnn"}
_NEEDS = {"openvino-int8": ("onnx-fp32", "openvino-fp32"), "onnx-fp32": (), "openvino-fp32": (), "ncnn-fp32": ()}
_HOUR = 3600


class PreparationError(Exception):
    """A step failed; says why in a line."""


class Workshop:
    """The work folder.

    Args:
        folder: made when missing.
        checkpoint: a diffusers pipeline directory; None: the published size with random weights.
        bundles: mdrt's files by format; what is missing is converted from the checkpoint.
    """

    def __init__(self, folder: Path, checkpoint: Path | None = None, bundles: dict[str, Path] | None = None) -> None:
        self.folder = folder.resolve()
        self._checkpoint = checkpoint.resolve() if checkpoint else None
        self._bundles = {format: path.resolve() for format, path in (bundles or {}).items()}

    def python(self, environment: str) -> Path:
        """The interpreter of an environment, which is made if need be; "" is this one.

        Raises:
            PreparationError: a package cannot be installed.
        """
        if not environment:
            return Path(sys.executable)
        folder = self.folder / "environments" / environment
        python = folder / "bin" / "python"
        ready = folder / "ready"  # a mark, since an environment cannot be renamed: its scripts hold their place
        if not ready.exists():
            self._run(folder, [sys.executable, "-m", "venv", "--clear", folder])
            self._run(folder, [python, "-m", "pip", "install", "--quiet", *PACKAGES[environment]])
            ready.touch()
        return python

    def checkpoint(self) -> Path:
        """The checkpoint of which all models are made.

        Raises:
            PreparationError: it cannot be written.
        """
        if self._checkpoint:
            return self._checkpoint
        folder = self.folder / "checkpoint"
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            command = [sys.executable, "-m", "mdrt", "new", "--preset", "mobilediffusion", "-o", unfinished]
            self._run(folder, command)
            unfinished.rename(folder)
        return folder

    def bundle(self, format: str) -> Path:
        """mdrt's file in a format.

        Raises:
            PreparationError: it cannot be converted.
        """
        if format in self._bundles:
            return self._bundles[format]
        path = self.folder / "models" / f"{format}.mdrt"
        if not path.exists():
            command = [sys.executable, "-m", "mdrt", "convert", self.checkpoint(), "-o", path, "--format", format]
            self._run(path, command)
        return path

    def model(self, recipe: str, stage: str) -> Path:
        """The folder of a peer's model.

        Raises:
            PreparationError: this step or one that it needs failed.
        """
        models = self.folder / "models"
        folder = models / stage / recipe
        if not folder.exists():
            for needed in _NEEDS.get(recipe, ("onnx-fp32",)):
                self.model(needed, stage)
            python = self.python(_ENVIRONMENT.get(recipe, "convert"))
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            command = [python, "-m", "peers.convert", recipe, stage, self.checkpoint(), models, unfinished]
            self._run(folder, command)
            unfinished.rename(folder)
        return folder

    def _run(self, target: Path, command: Sequence[str | Path]) -> None:
        """One command towards `target`, with a line on standard error, and its output beside if it fails."""
        failed = target.with_name(target.name + ".failed")
        if failed.exists():
            raise PreparationError(f"{last_line(failed)} ({failed.relative_to(self.folder)})")
        print(f"{target.relative_to(self.folder)} ...", file=sys.stderr, flush=True)
        log = target.with_name(target.name + ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as output:
            try:
                code = subprocess.run(
                    command, cwd=HERE, stdout=output, stderr=output, timeout=_HOUR, check=False, env={**os.environ}
                ).returncode
            except subprocess.TimeoutExpired:
                code = None
                print(f"stopped after {_HOUR} s", file=output)
        if code != 0:
            log.rename(failed)
            raise PreparationError(f"{last_line(failed)} ({failed.relative_to(self.folder)})")
