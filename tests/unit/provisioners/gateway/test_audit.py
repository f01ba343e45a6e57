"""The audit file: one line of JSON for each thing."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

import pytest

from roost.provisioners.gateway.audit import Audit

LOG = logging.getLogger("gateway")


def read(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_lines_are_added_and_the_file_may_be_rotated(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    audit = Audit(str(file), LOG, source="file", now=lambda: 12.3456)
    audit.write("start", person="ada", kernel="k", address="", sentence=None)
    expected = {
        "at": 12.346,
        "what": "start",
        "outcome": "done",
        "source": "file",
        "person": "ada",
        "kernel": "k",
    }
    assert read(file) == [expected]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    file.rename(tmp_path / "audit.1")
    audit.write("start", outcome="refused", sentence="a\n" + "x" * 5000)
    (line,) = read(file)
    assert len(str(line["sentence"])) == 500


def test_unknown_tokens_are_at_most_one_line_a_second(tmp_path: Path) -> None:
    now = 100.0
    audit = Audit(str(tmp_path / "a"), LOG, now=lambda: now)
    for later_s in (0.0, 0.5, 0.4, 0.2, 5.0):
        now += later_s
        audit.write_unknown("10.0.0.1", "unknown")
    assert [line["at"] for line in read(tmp_path / "a")] == [100.0, 101.1, 106.1]


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Audit(str(tmp_path / "none" / "a"), LOG).write("start")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    Audit(str(tmp_path / "link"), LOG).write("start")
    assert caplog.text.count("cannot be written") == 2
    assert not (tmp_path / "elsewhere").exists()
