"""Runs Jupyter's own test suites with roost as the default provisioner, against a list of known exceptions.

    python tests/conformance/run.py [SUITE...] [--provisioner local-provisioner] [--quick]

pip downloads the suites' source distributions. They are kept in .conformance/ (git-ignored) with their own virtual
environment, and run from the root of their source. The exit status is 1 if a test failed that expected.toml does not
list, or if a listed test passed. `--provisioner local-provisioner` is the baseline; `--quick` runs a few files of each
suite.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path

from roost.testing import leftovers

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CACHE = ROOT / ".conformance"

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLAIN = "local-provisioner"
REQUIREMENTS = HERE / "requirements.txt"

OWNER_GRACE_S = 10.0
"""The default of `c.RoostScheduler.owner_grace_s`."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A test suite in a source distribution: the paths to run, the paths for `--quick`, and an added file of ours."""

    sdist: str
    paths: tuple[str, ...]
    quick: tuple[str, ...]
    ours: str | None = None
    deadline_s: float = 1800.0


SUITES = {
    "jupyter_client": Suite(
        sdist="jupyter_client==8.10.0",
        paths=("tests",),
        quick=("tests/test_kernelmanager.py", "-k", "not TestParallel"),
    ),
    "nbclient": Suite(
        sdist="nbclient==0.11.0",
        paths=("tests",),
        quick=("tests/test_client.py::test_run_all_notebooks",),
    ),
    "jupyter_server": Suite(
        sdist="jupyter_server==2.21.0",
        paths=("tests/services/kernels", "tests/services/sessions"),
        quick=("tests/services/kernels/test_api.py",),
    ),
    "jupyter_kernel_test": Suite(
        sdist="jupyter_kernel_test==0.7.0",
        paths=("test_python_kernel.py",),
        quick=("test_python_kernel.py",),
        ours="test_python_kernel.py",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of a run: test ids by outcome, seconds, and the processes that outlived the suite."""

    passed: frozenset[str]
    failed: frozenset[str]
    skipped: frozenset[str]
    seconds: float
    left: list[str] = field(default_factory=list)
    complete: bool = True


def prepare() -> Path:
    """Return the Python of the suites' environment. Create the environment if it is missing or outdated."""
    folder = CACHE / "venv"
    python = folder / "bin" / "python"
    stamp = folder / "installed"
    wanted = REQUIREMENTS.read_text() + (ROOT / "pyproject.toml").read_text()
    if not stamp.exists() or stamp.read_text() != wanted:
        print("making the environment of the suites ...", flush=True)
        venv.create(folder, with_pip=True)
        pip(python, "install", "--upgrade", "pip>=23")
        pip(python, "install", "--requirement", str(REQUIREMENTS), "--editable", str(ROOT))
        stamp.write_text(wanted)
    return python


def pip(python: Path, *arguments: str) -> None:
    """Run pip quietly. Raise CalledProcessError if it fails."""
    subprocess.run(
        [str(python), "-m", "pip", "--quiet", *arguments], check=True, stdin=subprocess.DEVNULL, timeout=1200
    )


def source(python: Path, suite: Suite) -> Path:
    """Return the folder of a suite's source. Download it on first use."""
    folder = CACHE / "src" / suite.sdist.replace("==", "-")
    if not folder.exists():
        archives = CACHE / "sdist"
        pip(python, "download", "--no-deps", "--no-binary", ":all:", "--dest", str(archives), suite.sdist)
        (archive,) = archives.glob(f"{folder.name}.tar.gz")
        with tarfile.open(archive) as tar, tempfile.TemporaryDirectory(dir=CACHE) as unpacked:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(unpacked, filter="data")
            else:
                tar.extractall(unpacked)
            folder.parent.mkdir(exist_ok=True)
            os.rename(Path(unpacked, folder.name), folder)
    return folder


def run(python: Path, name: str, provisioner: str, *, quick: bool, extra: list[str]) -> Result:
    """Run a suite and return its result. At its deadline the suite is killed and counts as incomplete."""
    suite = SUITES[name]
    cwd = source(python, suite)
    if suite.ours:
        shutil.copy(HERE / suite.ours, cwd)
    report = CACHE / "results" / f"{name}-{provisioner}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    options = "-q -c pyproject.toml --rootdir . -p no:cacheprovider --color=no --timeout=120"
    options += " -o asyncio_default_fixture_loop_scope=function"
    paths = suite.quick if quick else suite.paths
    command = [str(python), "-m", "pytest", *options.split(), f"--junitxml={report}", *extra, *paths]
    drop = ("JPY_PARENT_PID", "PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTHONPATH")
    env = {
        key: value for key, value in os.environ.items() if key not in drop and not key.startswith("KERNEL_")
    }
    left: list[str] = []
    started = time.monotonic()
    try:
        with leftovers.private_runtime_dir() as folder:
            env |= {
                "IPYTHONDIR": f"{folder}/ipython",
                "JUPYTER_DEFAULT_PROVISIONER_NAME": provisioner,
                "JUPYTER_PLATFORM_DIRS": "1",
                "PATH": f"{python.parent}:{env['PATH']}",
                leftovers.VARIABLE: folder,
            }
            complete = _run_with_deadline(command, cwd, env, suite.deadline_s)
            seconds = time.monotonic() - started
            _await_owner_rules(folder)
            _dismiss(folder)
    except AssertionError as error:
        left = str(error).splitlines()[1:]
    return read(report, seconds=seconds, left=left, complete=complete)


def _await_owner_rules(folder: str) -> None:
    """Wait until the service has culled the kernels of the ended pytest, at most 5 s longer than `OWNER_GRACE_S`."""
    deadline = time.monotonic() + OWNER_GRACE_S + 5.0
    while time.monotonic() < deadline:
        if all(" -m roost." in leftovers.describe(left) for left in leftovers.processes(folder)):
            return
        time.sleep(0.5)


def _dismiss(folder: str) -> None:
    """End roost's service and agent, which would stay for minutes. Remaining kernels count as left behind."""
    for process in leftovers.processes(folder):
        if " -m roost." in leftovers.describe(process):
            with contextlib.suppress(leftovers.psutil.NoSuchProcess):
                process.terminate()


def _run_with_deadline(command: list[str], cwd: Path, env: dict[str, str], deadline_s: float) -> bool:
    with subprocess.Popen(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return False
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode in (0, 1)


def read(report: Path, *, seconds: float, left: list[str], complete: bool) -> Result:
    """Return the result that a JUnit file reports. A test that fails in its teardown has failed."""
    outcomes: dict[str, str] = {}
    if report.exists():
        for case in ET.parse(report).iter("testcase"):
            test = _test_id(case)
            if case.find("failure") is not None or case.find("error") is not None:
                outcomes[test] = "failed"
            elif case.find("skipped") is not None:
                outcomes.setdefault(test, "skipped")
            else:
                outcomes.setdefault(test, "passed")
    else:
        complete = False

    def having(outcome: str) -> frozenset[str]:
        return frozenset(test for test, its in outcomes.items() if its == outcome)

    return Result(
        passed=having("passed"),
        failed=having("failed"),
        skipped=having("skipped"),
        seconds=seconds,
        left=left,
        complete=complete,
    )


def _test_id(case: ET.Element) -> str:
    """Return the id `tests/test_x.py::Class::test[param]` from a class name like `tests.test_x.Class`."""
    parts = (case.get("classname") or "").split(".")
    module = next((n for n, part in enumerate(parts) if part.startswith("test_")), len(parts) - 1)
    return "::".join(["/".join(parts[: module + 1]) + ".py", *parts[module + 1 :], case.get("name") or "?"])


def judge(
    name: str, result: Result, expected: dict[str, dict[str, str]], provisioner: str, *, quick: bool
) -> list[str]:
    """Return a line for each difference from the expected outcome."""
    listed = dict(expected.get("plain", {}))
    if provisioner != PLAIN:
        listed |= expected.get("roost", {})
    sometimes = {test for test, reason in listed.items() if reason.startswith("sometimes:")}
    complaints = [f"{name}: unexpected failure {test}" for test in sorted(result.failed - set(listed))]
    complaints += [
        f"{name}: listed, but passes {test}" for test in sorted(result.passed & set(listed) - sometimes)
    ]
    if not quick:
        unknown = set(listed) - result.passed - result.failed - result.skipped
        complaints += [f"{name}: listed, but not there {test}" for test in sorted(unknown)]
    if not result.complete:
        complaints.append(f"{name}: did not run to its end")
    return complaints


def main() -> int:
    """Run the suites, print the table and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)} (default: all)")
    parser.add_argument("--provisioner", default="roost", help=f"roost, or {PLAIN} for the baseline")
    parser.add_argument("--quick", action="store_true", help="a few files of each suite")
    parser.add_argument("--clean", action="store_true", help="download and install everything again")
    parser.add_argument("-k", dest="keyword", help="passed to pytest; only unexpected failures count then")
    arguments = parser.parse_args()
    names = arguments.suites or list(SUITES)
    if unknown := set(names) - set(SUITES):
        parser.error(f"no such suite: {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    if arguments.clean:
        shutil.rmtree(CACHE, ignore_errors=True)
    python = prepare()
    expectations = tomllib.loads((HERE / "expected.toml").read_text())
    partial = arguments.quick or bool(arguments.keyword)
    rows, complaints = [], []
    for name in names:
        extra = ["-k", arguments.keyword] if arguments.keyword else []
        result = run(python, name, arguments.provisioner, quick=arguments.quick, extra=extra)
        expected = expectations.get(name, {})
        complaints += judge(name, result, expected, arguments.provisioner, quick=partial)
        plain = expected.get("baseline", {})
        before = (
            "-"
            if partial
            else f"{plain.get('passed', '?')}/{plain.get('failed', '?')}/{plain.get('skipped', '?')}"
        )
        now = f"{len(result.passed)}/{len(result.failed)}/{len(result.skipped)}"
        rows.append((name, before, now, f"{result.seconds:.0f} s", str(len(result.left))))
        for line in result.left:
            print(f"{name}: still there after the suite: {line}")
    head = ("suite", "plain: passed/failed/skipped", arguments.provisioner, "time", "left behind")
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    for row in [head, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print("\n".join(complaints) if complaints else "as expected")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
