"""The small C programs of this folder, compiled where they are needed."""

from __future__ import annotations

import subprocess
from pathlib import Path

from peers.preparation import PreparationError


def build(name: str, target: Path, *options: str) -> Path:
    """Compiles NAME of this folder into `target`, if that is older or missing.

    Returns:
        `target`.

    Raises:
        PreparationError: there is no C compiler, or it fails.
    """
    source = Path(__file__).with_name(name)
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run(["cc", "-O2", *options, source, "-o", target], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PreparationError(f"{name} cannot be compiled: {error}") from error
    return target
