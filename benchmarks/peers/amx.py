"""Intel's AMX, which a library must ask the kernel for: so a process can be made to work without."""

from __future__ import annotations

import ctypes
import errno
import platform
from pathlib import Path

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2
_SYS_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM = 158, 0x1023
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER_AT, _FIRST_ARGUMENT_AT = 0, 16


class _Filter(ctypes.Structure):
    """struct sock_filter: one instruction."""

    _fields_ = (("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filters", ctypes.POINTER(_Filter)))


def has_amx() -> bool:
    """Whether the processor has tiles for int8 and bf16."""
    return platform.machine() == "x86_64" and " amx_tile" in Path("/proc/cpuinfo").read_text(encoding="utf-8")


def forbid_amx() -> None:
    """Refuses this process and its threads the use of tiles from now on, as a kernel without AMX would.

    Raises:
        OSError: the kernel does not take the filter.
    """
    filters = (_Filter * 6)(
        _Filter(_LOAD, 0, 0, _NUMBER_AT),
        _Filter(_JUMP_IF_EQUAL, 0, 3, _SYS_ARCH_PRCTL),
        _Filter(_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
        _Filter(_JUMP_IF_EQUAL, 0, 1, _ARCH_REQ_XCOMP_PERM),
        _Filter(_RETURN, 0, 0, _ERRNO | errno.EINVAL),
        _Filter(_RETURN, 0, 0, _ALLOW),
    )
    program = _Program(len(filters), filters)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    for option, first, second in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program)),
    ):
        if prctl(option, first, second, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "the kernel refuses a filter for AMX")
