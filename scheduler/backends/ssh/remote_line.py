"""The line that the login shell of a host reads, and what the program on the host finds.

The shell may be sh, csh or fish. So the line has no `'`, `!`, `\\` and newline: in single quotes they differ. The text
within the single quotes is read by /bin/sh. Nothing in the line is secret, because `ps` shows it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

PYTHONS = ("python3.14", "python3.13", "python3.12", "python3.11", "python3.10", "python3")
NEEDED = ("zmq", "psutil")
"""Packages that an agent needs. ipykernel brings them."""

_OLD, _BARE = 66, 67
"""Exit codes of a Python that is too old, or that lacks a needed package. It has read nothing by then."""

# The first Python that fits reads the program itself, so the usual case starts one Python.
_RUN = (
    "import sys; sys.version_info < (3, 10) and sys.exit(%d); sys.path[0] or sys.path.pop(0); "
    "from importlib.util import find_spec; all(map(find_spec, sys.argv[1:])) or sys.exit(%d); "
    "exec(sys.stdin.buffer.read(%d))"
)
_LINE = (
    "m=ROOST; echo; echo $m-{mark} shell; "
    "for p in {pythons}; do "
    'command -v "$p" >/dev/null 2>&1 || continue; '
    '"$p" -c "{run}" {needed}; r=$?; '
    "case $r in {old}) o=$p;; {bare}) b=$p;; 126|127) ;; *) exit $r;; esac; "
    "done; echo; echo $m-{mark} none ${{o:--}} ${{b:--}}"
)
_PRELUDE = """\
import json, signal, sys
signal.alarm({deadline_s})  # the near end has gone by then; the program's own processes do not get it
sys.argv[1:] = []
MARK = {mark!r}
ARGUMENTS = json.loads({arguments!r})

def say(value):
    # The line break ends what others have printed.
    sys.stdout.write("\\n" + MARK + " " + json.dumps(value) + "\\n")
    sys.stdout.flush()

def fetch_archive():
    say({{"want": "archive"}})
    size = int(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read(size)
    if len(content) < size:
        sys.exit(1)  # the near end is gone
    return content

say({{"step": "python"}})

"""


def is_fit(python: str) -> bool:
    """True if a Python of the settings can stand in the line."""
    return not set(python) & set("'!\\\n\"`") and python.isprintable()


def write_line(secret: str, size_bytes: int, python: str) -> str:
    """Return the line for a program of `size_bytes`. `python` may begin with `~/` and contain variables of the host."""
    if python.startswith("~/"):
        python = f"$HOME/{python[2:]}"
    pythons = f'"{python}"' if python else " ".join(PYTHONS)
    run = _RUN % (_OLD, _BARE, size_bytes)
    line = _LINE.format(mark=secret, pythons=pythons, run=run, needed=" ".join(NEEDED), old=_OLD, bare=_BARE)
    return f"exec /bin/sh -c '{line}'"


def write_mark(secret: str) -> str:
    """Return the mark. The line does not contain it whole, so a host that repeats the line gives no answer."""
    return f"ROOST-{secret}"


def write_program(program: str, arguments: Mapping[str, Any], secret: str, deadline_s: float) -> bytes:
    """Return the program with its prelude, as the host's Python reads it from standard input.

    The host ends the program after `deadline_s`, if nothing else has ended it.
    """
    prelude = _PRELUDE.format(
        mark=write_mark(secret), arguments=json.dumps(arguments), deadline_s=math.ceil(deadline_s) + 1
    )
    return (prelude + program).encode()
