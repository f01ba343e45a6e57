"""How long new nodes took, kept in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.scheduler.backends.ray.start_times import StartTimes


def test_the_next_service_knows_the_last_five_starts(tmp_path: Path) -> None:
    times = StartTimes(tmp_path / "starts.json")
    assert times.of("gpu") == ()
    for took_s in range(7):
        times.add("gpu", took_s + 0.04)
    assert StartTimes(tmp_path / "starts.json").of("gpu") == (2.0, 3.0, 4.0, 5.0, 6.0)


@pytest.mark.parametrize(
    ("content", "known"),
    [("[]", ()), ("{", ()), ('{"gpu": 3}', ()), ('{"gpu": [null, -1, "x", 7]}', (7.0,))],
)
def test_a_spoilt_file_is_no_problem(tmp_path: Path, content: str, known: tuple[float, ...]) -> None:
    file = tmp_path / "starts.json"
    file.write_text(content)
    assert StartTimes(file).of("gpu") == known


def test_a_file_that_cannot_be_written_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    times = StartTimes(tmp_path / "gone" / "starts.json")
    times.add("gpu", 1.0)
    assert times.of("gpu") == (1.0,)
    assert "cannot be written" in caplog.text
