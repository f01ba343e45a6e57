"""Installs packages with pip. Prints how far it is, and pip's own output only if pip fails.

    .venv/bin/python .ci/install.py 'ABOUT' PIP-ARGUMENT...

pip shows what setuptools reports about every editable install of roost, whose package is the repository's root. A
newcomer can do nothing about it. ABOUT is the line that is printed first.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_LINES = 30
"""How many of the last lines of pip's output are printed if pip fails."""


def main() -> int:
    about, *arguments = sys.argv[1:]
    print(about, flush=True)
    with tempfile.NamedTemporaryFile() as output:
        log = Path(output.name)
        command = [sys.executable, "-m", "pip", "install", "--progress-bar", "off", *arguments]
        pip = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        status = follow(pip, lambda: log.read_text(errors="replace"))
        if status:
            print("\n".join(log.read_text(errors="replace").splitlines()[-_LINES:]))
    return status


def follow(pip: subprocess.Popen[bytes], read: Callable[[], str]) -> int:
    """Print a line on a terminal that changes each second, or else one every 30 s. Return pip's exit status."""
    is_terminal, began = sys.stdout.isatty(), time.monotonic()
    while True:
        try:
            status = pip.wait(1 if is_terminal else 30)
        except subprocess.TimeoutExpired:
            line = f"  {time.monotonic() - began:.0f} s: {describe(read())}"
            print(f"\r{line:<60}" if is_terminal else line, end="" if is_terminal else "\n", flush=True)
            continue
        if is_terminal:
            print(f"\r{'':<60}\r", end="")
        if status == 0:
            print(f"  done after {time.monotonic() - began:.0f} s", flush=True)
        return status


def describe(output: str) -> str:
    """Return one line about pip's work so far. pip downloads all packages before it installs them."""
    found = re.findall(r"^Collecting (\S+)", output, re.MULTILINE)
    if installing := re.search(r"^Installing collected packages: (.+)", output, re.MULTILINE):
        return f"installing {len(installing[1].split(', '))} packages"
    return f"{len(found)} packages downloaded"


if __name__ == "__main__":
    sys.exit(main())
