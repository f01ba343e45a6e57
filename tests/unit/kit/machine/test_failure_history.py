"""The history of failed tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from kit.machine import failure_labels


def test_the_history_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(failure_labels, "KEPT", 3)
    for number in range(3):
        tests = {f"test_{number}": ("FLAKY", "late"), f"again_{number}": ("FAILED", "wrong")}
        failure_labels.record(tests, tmp_path)
    lines = failure_labels.history().read_text().splitlines()
    assert [line.split("\t")[3] for line in lines] == ["again_1", "test_2", "again_2"]
