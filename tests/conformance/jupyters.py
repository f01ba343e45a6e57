"""Runs tests against the oldest and the newest releases of Jupyter's libraries that roost allows.

    python tests/conformance/jupyters.py [--only oldest] [PYTEST ARGUMENT...]

Each of the two gets a virtual environment in .conformance/ (git-ignored), with roost and what its tests need, but
without cluster libraries. pip looks for newer releases in each run. Without arguments, it runs the unit tests of
`provisioners/`, and the real ones on this machine. The exit status is 1 if a test failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent.parent
CACHE = ROOT / ".conformance"
LIBRARIES = ("ipykernel", "jupyter_client", "jupyter_kernel_gateway", "jupyter_server")
TESTS = (
    *("tests/unit/provisioners", "tests/machine", "tests/servers", "tests/forks", "tests/suites"),
    *("-m", "not long"),
    *("--ignore", "tests/suites/test_backend.py", "--backend", "local"),  # it imports all cluster libraries
)
"""The tests that need no cluster."""
SIDE_BY_SIDE = ("-n", "2", "--dist", "loadgroup", "--no-loadscope-reorder")  # as `make test`
REPORT = f"""
import importlib.metadata as m, sys
print(sys.version.split()[0], *(f"{{name}} {{m.version(name)}}" for name in {LIBRARIES}), sep=", ")
"""
_INSTALL_S, _TESTS_S = 1200, 7200


def main() -> int:
    about = "Run tests with the oldest and the newest Jupyter. Further arguments go to pytest."
    parser = argparse.ArgumentParser(description=about, allow_abbrev=False)
    parser.add_argument("--only", choices=("oldest", "newest"), help="one of the two")
    options, tests = parser.parse_known_args()
    failed = []
    for which in [options.only] if options.only else ["oldest", "newest"]:
        python = prepare(which)
        print(f"\n{which}:", flush=True)
        subprocess.run([python, "-c", REPORT], check=True, timeout=60)
        run = subprocess.run(
            [python, "-m", "pytest", "-q", *SIDE_BY_SIDE, *(tests or TESTS)],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"},
            timeout=_TESTS_S,
            check=False,
        )
        if run.returncode:
            failed.append(which)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


def prepare(which: str) -> Path:
    """Return the Python of the virtual environment with the `oldest` or the `newest` releases of the libraries."""
    folder = CACHE / f"jupyter-{which}"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=_INSTALL_S)
    wanted = [f"{name}=={release}" for name, release in read_oldest().items()]
    if which == "newest":
        wanted = list(LIBRARIES)  # within roost's bounds
    roost = ["--editable", f"{ROOT}[bench,test]"]
    install = [python, "-m", "pip", "install", "--quiet", "--upgrade", *roost, *wanted]
    subprocess.run(install, check=True, timeout=_INSTALL_S)
    return python


def read_oldest() -> dict[str, str]:
    """Return the oldest release of each library that pyproject.toml allows."""
    oldest = {}
    for text in requires("roost") or ():
        requirement = Requirement(text)
        for bound in requirement.specifier:
            if requirement.name in LIBRARIES and bound.operator == ">=":
                oldest[requirement.name] = bound.version
    assert set(oldest) == set(LIBRARIES), oldest
    return oldest


if __name__ == "__main__":
    sys.exit(main())
