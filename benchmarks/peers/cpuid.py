"""Instruction sets hidden from a process by cpuid.c: it runs as it would on an older processor."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from peers.build import build
from peers.peaks import cpu_flags


def can_pretend() -> bool:
    """Whether this processor lets the kernel answer CPUID."""
    return "cpuid_fault" in cpu_flags()


def library(folder: Path) -> Path:
    """What `pretend` loads, compiled into `folder`.

    Raises:
        PreparationError: there is no C compiler, or it fails.
    """
    return build("cpuid.c", folder / "cpuid.so", "-shared", "-fPIC")


def pretend(library: str, avx_vnni: bool) -> None:
    """Hides AVX-512, AMX and perhaps AVX-VNNI from what this thread loads from now on, and threads that it starts.

    Args:
        library: what `library` gave.
        avx_vnni: whether that one stays.

    Raises:
        OSError: the kernel or the processor cannot.
    """
    error = ctypes.CDLL(library).hide_instructions(int(not avx_vnni))
    if error != 0:
        raise OSError(error, f"CPUID cannot be answered for this process: {os.strerror(error)}")
