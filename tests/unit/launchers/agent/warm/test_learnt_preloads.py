"""An agent learns packages from the reports of kernels, and keeps the reports in files."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from roost.launchers.agent.warm.learnt_preloads import FEWEST, RECENT, Habits, LearntPreloads, Report

PYTHON = "/opt/ml/bin/python"


def habits(*kernels: Sequence[str], sites: tuple[str, ...] = ()) -> Habits:
    known = Habits(python=PYTHON)
    for names in kernels:
        known = known.add(Report(python=PYTHON, sites=sites, names=tuple(names)))
    return known


def report(folder: Path, names: Sequence[str], python: str = PYTHON) -> Path:
    path = folder / "imports.json"
    path.write_text(json.dumps({"python": python, "sites": [str(folder)], "names": list(names)}))
    return path


def teach(learnt: LearntPreloads, folder: Path, *names: str) -> None:
    for _ in range(FEWEST):
        assert learnt.record(report(folder, names)) == PYTHON


def test_half_of_at_least_five_kernels_make_a_preload() -> None:
    assert habits(*[["numpy"]] * 4).choose() == {}
    assert habits(*[["numpy"]] * 5).choose() == {"numpy": 5}
    assert habits(*[["numpy"]] * 3, [], []).choose() == {"numpy": 3}
    assert habits(*[["numpy"]] * 3, *[[]] * 3).choose() == {"numpy": 3}
    assert habits(*[["numpy"]] * 3, *[[]] * 4).choose() == {}


def test_the_packages_that_most_kernels_import_come_first() -> None:
    kernels = [["numpy", "pandas"], ["numpy", "pandas"], ["numpy", "arrow"], ["numpy", "arrow"]]
    assert list(habits(*kernels, ["pandas"]).choose()) == ["numpy", "pandas"]
    assert list(habits(*kernels).add(Report(python="", sites=(), names=("arrow",))).choose()) == [
        "numpy",
        "arrow",
    ]


def test_only_the_latest_kernels_count() -> None:
    early, late = [["early"]] * RECENT, [["late"]] * (RECENT // 2)
    assert habits(*early, *late).choose() == {"early": RECENT // 2, "late": RECENT // 2}
    assert habits(*early, *late, ["late"]).choose() == {"late": RECENT // 2 + 1}


def test_a_name_counts_once_per_kernel_and_must_be_a_name() -> None:
    odd = ["numpy", "numpy", "a.b", "-c", "", "x" * 65]
    assert habits(odd, odd, [], [], []).choose() == {}
    assert habits(*[odd] * 5).choose() == {"numpy": 5}


def test_the_next_agent_knows_what_this_one_has_learnt(tmp_path: Path) -> None:
    folder = tmp_path / "preloads"
    learnt = LearntPreloads(folder)
    teach(learnt, tmp_path, "numpy")
    learnt.drop(PYTHON, "pandas", "it starts a thread")
    assert LearntPreloads(folder).choose(PYTHON) == {"numpy": 5}
    assert LearntPreloads(folder).choose("/another/python") == {}
    (file,) = folder.iterdir()
    assert (file.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    file.write_text("{")
    assert LearntPreloads(folder).choose(PYTHON) == {}


def test_an_unfit_package_is_tried_again_with_another_version_of_the_environment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    site = tmp_path / "site-packages"
    site.mkdir()
    learnt = LearntPreloads(tmp_path / "preloads")
    teach(learnt, site, "numpy", "threaded")
    learnt.drop(PYTHON, "threaded", "it starts a thread")
    assert f"threaded is not preloaded for {PYTHON}: it starts a thread" in caplog.text
    assert learnt.choose(PYTHON) == LearntPreloads(tmp_path / "preloads").choose(PYTHON) == {"numpy": 5}
    (site / "threaded-2.0.dist-info").mkdir()
    assert LearntPreloads(tmp_path / "preloads").choose(PYTHON) == {"numpy": 5, "threaded": 5}
    learnt.drop(PYTHON, "numpy", "it prints something")
    assert learnt.choose(PYTHON) == {"threaded": 5}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"[" * 10_000,
        b"[]",
        b'{"python": 1, "sites": [], "names": []}',
        b'{"python": "", "sites": "", "names": []}',
        b'{"python": "p", "sites": [], "names": ["n"], "more": 1}',
        b" " * (64 << 10) + b'{"python": "p", "sites": [], "names": ["n"]}',
    ],
)
def test_a_report_of_another_form_is_ignored_and_removed(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "imports.json"
    path.write_bytes(content)
    assert LearntPreloads(tmp_path / "preloads").record(path) == ""
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_no_report_and_no_report_is_fine(tmp_path: Path) -> None:
    learnt = LearntPreloads(tmp_path / "preloads")
    assert learnt.record(tmp_path / "imports.json") == ""
    target = report(tmp_path, ["numpy"]).rename(tmp_path / "target")
    (tmp_path / "imports.json").symlink_to(target)
    assert learnt.record(tmp_path / "imports.json") == ""
    assert list(tmp_path.iterdir()) == [target]


def test_the_oldest_files_go_if_there_are_too_many(tmp_path: Path) -> None:
    folder = tmp_path / "preloads"
    for n in range(60):
        LearntPreloads(folder).record(report(tmp_path, ["numpy"], python=f"/venv/{n}/python"))
        for file in folder.iterdir():  # all writes may fall into one tick of the clock
            os.utime(file, ns=(0, file.stat().st_mtime_ns - 1_000_000_000))
    kept = {json.loads(file.read_bytes())["python"] for file in folder.iterdir()}
    assert kept == {f"/venv/{n}/python" for n in range(10, 60)}
