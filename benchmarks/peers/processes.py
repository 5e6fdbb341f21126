"""Worker processes as objects: started once, stopped between their turns, asked one at a time."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent


class WorkerError(Exception):
    """A worker ended; says what it printed last."""


class Worker:
    """One runtime with one model in a process of its own.

    Outside of its turns the process is stopped, so that no thread of a waiting runtime spins while another is timed.

    Args:
        python: the interpreter of the runtime's environment.
        task: for `peers.worker`; paths are absolute.
        log: a file for what the process prints.
    """

    def __init__(self, python: Path, task: Mapping[str, Any], log: Path) -> None:
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "peers.worker", json.dumps(dict(task))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # Here it finds this package, and no mdrt but the installed one.
                cwd=HERE,
            )
        try:
            self.loaded = self._answer()
        except BaseException:
            self.close()
            raise
        self._process.send_signal(signal.SIGSTOP)

    def turn(self) -> dict[str, Any]:
        """Runs and gives the worker's answer.

        Raises:
            WorkerError: the process ended.
        """
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._end() from None
        answer = self._answer()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """Ends the process. May be called twice."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._end()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _end(self) -> WorkerError:
        """Why a process that is no longer there ended."""
        self._process.wait()
        return WorkerError(last_line(self._log) or f"it ended with {self._process.returncode}")


def last_line(log: Path) -> str:
    """The last line of a log that is not empty; "" if there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
