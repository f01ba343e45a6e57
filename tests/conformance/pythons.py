"""Compares forked and standby kernels with fresh ones, on several Pythons.

    python tests/conformance/pythons.py [--only PROGRAM] PYTHON[:IPYKERNEL]...

Each PYTHON is an interpreter, and IPYKERNEL a version: `python3.10:6` has the newest ipykernel 6. It gets a virtual
environment in .conformance/ (git-ignored) with ipykernel and the packages of `programs/requirements.txt`. Then
all programs of `programs/` and all spoils run with kernels of that environment.
The exit status is 1 if a test failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".conformance"
REQUIREMENTS = Path(__file__).with_name("programs") / "requirements.txt"
TESTS = [f"tests/forks/test_{name}.py" for name in ("programs", "spoilt_forks")]
REPORT = """
import importlib.metadata as m, sys
print(sys.version.split()[0], *(f"{name} {m.version(name)}" for name in ("ipykernel", "ipython", "pyzmq")), sep=", ")
"""
_INSTALL_S, _TESTS_S = 1800, 14_400


def main() -> int:
    about = "Compare forked and standby kernels with fresh ones."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("pythons", nargs="+", metavar="PYTHON[:IPYKERNEL]")
    parser.add_argument("--only", metavar="PROGRAM", help="one program")
    options = parser.parse_args()
    tests = [TESTS[1], "-k", f"{options.only}-"] if options.only else TESTS
    failed = []
    for wanted in options.pythons:
        python = prepare(*wanted.partition(":")[::2])
        print(flush=True)
        subprocess.run([python, "-c", REPORT], check=True, timeout=60)
        run = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--durations", "10", *tests],
            cwd=ROOT,
            env={**os.environ, "ROOST_TEST_PYTHON": str(python)},
            timeout=_TESTS_S,
            check=False,
        )
        if run.returncode:
            failed.append(wanted)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


def prepare(interpreter: str, ipykernel: str) -> Path:
    """Return the Python of a virtual environment of this interpreter that has ipykernel and the programs' packages."""
    asked = [interpreter, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        version = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as problem:
        sys.exit(f"{interpreter} cannot be run: {problem}")
    folder = CACHE / (f"python-{version}-ipykernel-{ipykernel}" if ipykernel else f"python-{version}")
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = REQUIREMENTS.read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making the environment {folder.name} ...", flush=True)
        subprocess.run([interpreter, "-m", "venv", "--clear", folder], check=True, timeout=_INSTALL_S)
        pinned = f"ipykernel=={ipykernel}.*" if ipykernel else "ipykernel"
        install(python, [pinned])
        packages = [line for line in wanted.splitlines() if not line.startswith("#")]
        try:
            install(python, [pinned, *packages])
        except subprocess.CalledProcessError:
            for package in packages:
                try:
                    install(python, [pinned, package])
                except subprocess.CalledProcessError:
                    print(
                        f"{package} cannot be installed for {interpreter}: its programs are skipped",
                        flush=True,
                    )
        stamp.write_text(wanted)
    return python


def install(python: Path, packages: list[str]) -> None:
    """Install wheels. Raise CalledProcessError if a package has none for this Python."""
    options = ("--quiet", "--disable-pip-version-check", "--only-binary", ":all:")
    command = [python, "-m", "pip", "install", *options, *packages]
    subprocess.run(command, check=True, timeout=_INSTALL_S)


if __name__ == "__main__":
    sys.exit(main())
