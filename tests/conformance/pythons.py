"""Compares forked and standby kernels with fresh ones, on several Pythons.

    python tests/conformance/pythons.py PYTHON...

Each PYTHON is an interpreter. It gets a virtual environment in .conformance/ (git-ignored) with ipykernel and numpy.
`tests/lifecycle/test_behaviours.py` then runs with kernels of that environment. The exit status is 1 if a test failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".conformance"
TESTS = "tests/lifecycle/test_behaviours.py"
REPORT = """
import importlib.metadata as m, sys
print(sys.version.split()[0], *(f"{name} {m.version(name)}" for name in ("ipykernel", "ipython", "pyzmq")), sep=", ")
"""
_INSTALL_S, _TESTS_S = 600, 900


def main(interpreters: list[str]) -> int:
    if not interpreters:
        sys.exit("Name at least one Python: make pythons PYTHONS='python3.10 python3.13'")
    failed = []
    for interpreter in interpreters:
        python = prepare(interpreter)
        print(flush=True)
        subprocess.run([python, "-c", REPORT], check=True, timeout=60)
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", TESTS],
            cwd=ROOT,
            env={**os.environ, "ROOST_TEST_PYTHON": str(python)},
            timeout=_TESTS_S,
            check=False,
        )
        if tests.returncode:
            failed.append(interpreter)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


def prepare(interpreter: str) -> Path:
    """Return the Python of a virtual environment of this interpreter that has ipykernel."""
    asked = [interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        version = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as problem:
        sys.exit(f"{interpreter} cannot be run: {problem}")
    folder = CACHE / f"python-{version}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter, "-m", "venv", folder], check=True, timeout=_INSTALL_S)
    install = [python, "-m", "pip", "install", "--quiet", "ipykernel", "numpy"]
    subprocess.run(install, check=True, timeout=_INSTALL_S)
    return python


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
