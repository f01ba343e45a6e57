"""The command line and the variables that the system shows for a process, in /proc/PID/cmdline and /proc/PID/environ.

Linux reads them from the process's own memory. A forked kernel has those of its zygote there, until it moves the limits
of that memory (PR_SET_MM_MAP in prctl(2), without privileges since Linux 3.18).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping, Sequence
from typing import Any

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14  # from linux/prctl.h
_NO_FILE = 0xFFFFFFFF
_PLACES = {
    "start_code": 26,
    "end_code": 27,
    "start_data": 45,
    "end_data": 46,
    "start_brk": 47,
    "brk": 0,
    "start_stack": 28,
    "arg_start": 48,
    "arg_end": 49,
    "env_start": 50,
    "env_end": 51,
}
"""The addresses of `struct prctl_mm_map`, in its order, each with its field in /proc/PID/stat (proc(5))."""
_MOST_TRIES = 10
_areas: list[Any] = []  # they stay mapped
_libc = ctypes.CDLL(None)
_prctl, _sbrk = _libc.prctl, _libc.sbrk
_sbrk.restype = ctypes.c_void_p
_ZERO = ctypes.c_ulong(0)


class _MemoryMap(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in _PLACES),
        ("auxv", ctypes.c_uint64),
        ("auxv_size", ctypes.c_uint32),
        ("exe_fd", ctypes.c_uint32),
    )


def show(argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
    """Have the system show this command line for this process, and these variables, if given.

    Where the system does not allow that, it goes on to show the variables from the start, and as much of `argv` as
    there is room for.
    """
    arguments = b"".join(os.fsencode(part) + b"\0" for part in argv)
    try:
        with open("/proc/self/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        places = {name: int(fields[at - 3]) for name, at in _PLACES.items() if at}
    except (OSError, ValueError, IndexError):  # not on Linux
        return
    if not _move(arguments, env, places):
        start, stop = places["arg_start"], places["arg_end"]
        if 0 < start < stop:
            ctypes.memmove(start, arguments[: stop - start - 1].ljust(stop - start, b"\0"), stop - start)


def _move(arguments: bytes, env: Mapping[str, str] | None, places: dict[str, int]) -> bool:
    variables = b""
    if env is not None:
        variables = b"".join(b"%s=%s\0" % (os.fsencode(name), os.fsencode(env[name])) for name in env)
    # Linux shows only private memory without a file.
    area = mmap.mmap(-1, len(arguments + variables) or 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[: len(arguments + variables)] = arguments + variables
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    places = {**places, "arg_start": start, "arg_end": start + len(arguments)}
    if env is not None:
        places |= {"env_start": places["arg_end"], "env_end": places["arg_end"] + len(variables)}
    for _ in range(_MOST_TRIES):
        # The end of the heap is set, too. Another thread may have moved it meanwhile.
        end_of_heap = _sbrk(0)
        wanted = _MemoryMap(**{**places, "brk": end_of_heap}, exe_fd=_NO_FILE)
        size = ctypes.c_ulong(ctypes.sizeof(wanted))
        if _prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(wanted), size, _ZERO) != 0:
            return False
        if _sbrk(0) == end_of_heap:
            break
    _areas.append(area)
    return True
