"""The report of `roost migrate`, and its exit codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from kit.jupyter.old_kernelspecs import JupyterFolders, answer_all, separate_jupyter, write_old
from roost.provisioners.migration.report import Line
from roost.scheduler.cli import main

LINES = (
    Line("argv", "translated", "ipykernel starts without the launcher"),
    Line("env KERNEL_UID", "decision", "roost takes the image's user", "the image's user"),
    Line("metadata.process_proxy.config.x", "none", "roost has no x"),
)


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> JupyterFolders:
    monkeypatch.setenv("COLUMNS", "200")
    return separate_jupyter(tmp_path, monkeypatch)


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return `answer_all`, for this test."""
    return partial(answer_all, monkeypatch)


def test_each_option_has_a_line_and_decisions_come_first(
    folders: JupyterFolders, answer: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_old(folders.system, "spark")
    answer(*LINES)
    assert main.main(["migrate", "spark"]) == 3
    shown = [line.split(maxsplit=1)[0] for line in capsys.readouterr().out.splitlines() if line]
    assert shown == ["spark", "OPTION", "decision", "no", "translated"]
    main.main(["migrate", "--all", "--check"])
    assert "roost takes the image's user (until then: the image's user)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "values", "code"),
    [
        (LINES[:1], {}, 0),
        (LINES, {}, 3),
        ((), {"waits_for": "docker", "backend": "docker"}, 3),
        ((), {"refusal": "roost has no Conductor."}, 3),
        ((), {"error": "The file is no JSON."}, 1),
    ],
)
@pytest.mark.parametrize("how", [[], ["--check"], ["--json"]])
def test_exit_codes(
    folders: JupyterFolders,
    answer: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    lines: tuple[Line, ...],
    values: dict[str, str],
    code: int,
    how: list[str],
) -> None:
    write_old(folders.system, "a")
    write_old(folders.system, "b")
    answer(*lines, **values)
    assert main.main(["migrate", "--all", *how]) == code
    shown = capsys.readouterr().out
    for sentence in (values.get("refusal", ""), values.get("error", "")):
        assert sentence in shown
    assert ("2 kernelspecs: " in shown) == ("--json" not in how)
