"""The distribution of tests over workers: groups stay together, and nothing runs beside the group `alone`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist", reason="pytest-xdist is not installed: pip install '.[test]'")

from distribution import ALONE, group_of

TESTS = Path(__file__).parents[2]
HOOKS = """
import json, os, time
import pytest

@pytest.fixture(autouse=True)
def note(request):
    began = time.monotonic()
    yield
    line = json.dumps([request.node.name, os.environ["PYTEST_XDIST_WORKER"], began, time.monotonic()])
    with open(os.environ["NOTES"], "a") as file:
        file.write(line + "\\n")

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from distribution import GroupsThenAlone
    return GroupsThenAlone(config, log)
"""
ALONE_TESTS = """
import pytest
@pytest.mark.parametrize("number", range(3))
def test_alone(number): pass
"""


def run(folder: Path, *names: str) -> dict[str, tuple[str, float, float]]:
    """Run two tests for each name, and three alone, on two workers. Return the worker, begin and end of each."""
    (folder / "tests" / "fault").mkdir(parents=True)
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    (folder / "conftest.py").write_text(HOOKS)
    (folder / "tests" / "fault" / "test_alone.py").write_text(ALONE_TESTS)
    shutil.copy(TESTS / "kit" / "distribution.py", folder)
    for name in names:
        source = f"import time\ndef test_{name}_1(): time.sleep(0.2)\ndef test_{name}_2(): pass\n"
        (folder / "tests" / f"test_{name}.py").write_text(source)
    notes = folder / "notes"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"],
        cwd=folder, env={"PATH": "/usr/bin:/bin", "NOTES": str(notes)}, check=True, timeout=60,
    )  # fmt: skip
    lines = [json.loads(line) for line in notes.read_text().splitlines()]
    return {name: (worker, began, ended) for name, worker, began, ended in lines}


@pytest.mark.parametrize("names", ["", "a", "abc"])
def test_the_group_alone_runs_when_all_others_have_ended(tmp_path: Path, names: str) -> None:
    ran = run(tmp_path, *names)
    assert len(ran) == 3 + 2 * len(names)
    others_end = max((ended for name, (_, _, ended) in ran.items() if "alone" not in name), default=0)
    assert min(began for name, (_, began, _) in ran.items() if "alone" in name) > others_end
    assert {ran[f"test_{name}_1"][0] == ran[f"test_{name}_2"][0] for name in names} <= {True}
    if len(names) > 1:
        assert {worker for worker, _, _ in ran.values()} == {"gw0", "gw1"}


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("tests/fault/test_kills.py::test_a_zygote", "alone"),
        ("tests/lifecycle/test_async_manager.py::test_ipc[local]", "tests/lifecycle/test_async_manager.py"),
        ("tests/lifecycle/test_async_manager.py::test_restart[ray-False]", "ray"),
        ("tests/lifecycle/test_dask_notebooks.py::test_the_example[dask]", "dask"),
        ("tests/contract/test_backend.py::test_watching_ends_with_the_backend[dask_tls]", "dask_tls"),
        ("tests/contract/test_backend.py::test_claims[kubernetes]", "kubernetes"),
        ("tests/unit/scheduler/test_ray.py::test_it[ray]", "tests/unit/scheduler/test_ray.py"),
    ],
)
def test_the_group_of_a_test(test: str, group: str) -> None:
    assert group_of(test) == group


def test_what_runs_alone_exists() -> None:
    for prefix in ALONE:
        path, _, name = prefix.partition("::")
        file = TESTS.parent / path
        assert file.exists()
        assert file.is_dir() or name in file.read_text()
