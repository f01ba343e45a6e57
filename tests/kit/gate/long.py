"""Run everything that no landing runs: `python -m kit.gate.long 3/8` for the third of eight slices.

A step that has ended is noted in `build/long.tsv`. A slice that was killed goes on with the step at which it stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

DONE = Path("build/long.tsv")
"""A line for each step that has ended: its command, passed or failed, and its minutes."""
_PYTEST = ".venv/bin/python -m pytest -q --timeout 1800"
COMMANDS = (
    f"ROOST_MESSAGES=100000 {_PYTEST} --timeout 14400 tests/property -k hostile",
    f"ROOST_MESSAGES=100000 {_PYTEST} --timeout 14400 tests/machine tests/servers -k hostile",
    ".venv/bin/python tests/conformance/run.py jupyter_client nbclient jupyter_server jupyter_kernel_test",
    ".venv/bin/python tests/conformance/pythons.py .venv/bin/python",
    ".venv/bin/python tests/conformance/jupyters.py --only oldest",
    ".venv/bin/python tests/conformance/jupyters.py --only newest",
)


def main(slice_of: str) -> int:
    os.environ.pop("PYTHONPATH", None)  # of this process alone: kernels would have it
    number, count = map(int, slice_of.split("/"))
    steps = [*COMMANDS, *(f"{_PYTEST} -m long {file}" for file in list_files())]
    failed = [step for step in steps[number - 1 :: count] if not run(step)]
    print("\n".join(["These steps failed:", *failed] if failed else ["All steps passed."]))
    return bool(failed)


def list_files() -> list[str]:
    """Return the files that have tests with the marker `long`."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "-m", "long", "tests"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({line.partition("::")[0] for line in listed if "::" in line})


def run(step: str) -> bool:
    """Run a step, unless it has ended already, and note how. Return True if it has passed."""
    noted = DONE.read_text(encoding="utf-8").splitlines() if DONE.exists() else []
    for line in noted:
        if line.startswith(f"{step}\t"):
            return "\tpassed\t" in line
    print(f"== {step}", flush=True)
    began = time.monotonic()
    has_passed = subprocess.run(step, shell=True, check=False).returncode == 0
    DONE.parent.mkdir(exist_ok=True)
    with DONE.open("a", encoding="utf-8") as file:
        minutes = (time.monotonic() - began) / 60
        file.write(f"{step}\t{'passed' if has_passed else 'failed'}\t{minutes:.1f}\n")
    return has_passed


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
