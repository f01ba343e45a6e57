"""The command of a kernel: only the interpreter itself with `-m ipykernel_launcher` can be replaced by a fork."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from roost.placement.model.last_entries import LastEntries

LAUNCHER = "ipykernel_launcher"
LAUNCHERS = (LAUNCHER, "ipykernel")
_ELF = b"\x7fELF"
_STARTS_PYTHON = (b"Py_BytesMain", b"Py_Main")
"""Functions of CPython's C API that run an interpreter. Its programs call or contain one of them."""
_MOST_PROGRAMS = 64

_checked: LastEntries[str, tuple[tuple[int, int, int], bool]] = LastEntries(_MOST_PROGRAMS)
"""The latest programs that were looked at: stamp, and whether the program is an interpreter."""


class NotForked(Exception):
    """A kernel must be executed instead of forked. The text gives the reason as a clause."""


class NotInterpreter(NotForked):
    """The command's program is a script or another program that starts an interpreter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCommand:
    """The parts of an ipykernel's argv: `python *flags -m ipykernel_launcher -f FILE *args`."""

    python: str
    flags: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    launcher: str = LAUNCHER
    """The module after `-m`, or the path of a script."""


def parse_ipykernel_command(argv: Sequence[str]) -> KernelCommand | None:
    """Split an ipykernel's argv into its parts. Return None for any other command."""
    if len(argv) < 4:
        return None
    flags: list[str] = []
    rest = list(argv[1:])
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        flag = rest.pop(0)
        if flag.startswith(("-c", "-h", "-i", "-V", "-v", "--")) or flag == "-":
            return None
        flags.append(flag)
        if flag in ("-X", "-W"):
            flags.append(rest.pop(0) if rest else "")
    if rest[:1] == ["-m"]:
        rest.pop(0)
        if not rest or rest[0] not in LAUNCHERS:
            return None
    elif not rest or os.path.basename(rest[0]) != "ipykernel_launcher.py":
        return None
    args = rest[1:]
    if args.count("-f") != 1 or args[-1] == "-f":
        return None
    at = args.index("-f")
    return KernelCommand(
        python=argv[0], flags=tuple(flags), args=(*args[:at], *args[at + 2 :]), launcher=rest[0]
    )


def check_command(command: KernelCommand, program: str | None) -> str:
    """Return the program of a command that a fork can stand for. Else raise `NotForked`.

    `program` is the result of `find_program`. This does not run it.
    """
    if program is None:
        raise NotForked(f"{command.python} is not found")
    if command.launcher != LAUNCHER:
        raise NotForked(f"its command runs {command.launcher}, not `-m {LAUNCHER}`")
    if not is_interpreter(program):
        raise NotInterpreter(f"{program} is not the Python interpreter itself, but a program that starts it")
    return program


def find_program(name: str, env: Mapping[str, str], cwd: str = "/") -> str | None:
    """Return the absolute path of the program that a start in `cwd` with `env` would run; None if there is none.

    Links are kept, because they name the virtual environment.
    """
    if os.path.dirname(name):
        return shutil.which(os.path.join(cwd, name))
    found = shutil.which(name, path=env.get("PATH", os.defpath))
    return os.path.abspath(found) if found else None


def suggest_interpreter(pid: int) -> str:
    """Return the interpreter that a program has become, as its command line names it; empty if it has become none.

    Nor is it one of this machine if the program has entered a container.
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        if os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"):
            return ""
        first = os.fsdecode(file.read().partition(b"\0")[0])
        if os.path.isabs(first) and is_interpreter(first):
            return first
    return ""


def is_interpreter(path: str) -> bool:
    """True if this program is CPython itself, and not a script or a program that starts an interpreter.

    This reads the file once for each content, which takes a few ms. `zygote_pool` also checks the running process.
    """
    try:
        status = os.stat(path)
        stamp = status.st_mtime_ns, status.st_size, status.st_ino
        known = _checked.get(path)
        if known is None or known[0] != stamp:
            known = _checked[path] = stamp, _contains_interpreter(path)
    except (OSError, ValueError):  # it is missing, not readable, or empty
        return False
    return known[1]


def _contains_interpreter(path: str) -> bool:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content[: len(_ELF)] == _ELF and any(content.find(name) >= 0 for name in _STARTS_PYTHON)
