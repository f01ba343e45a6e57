"""Red and green: what each kind of failure does to a run."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from kit.gate.known import Entry
from kit.gate.results import Failure, Label, PartResult
from kit.gate.verdict import describe, find_reasons

NOW = datetime(2030, 1, 30, tzinfo=timezone.utc)
GREEN = PartResult(part="test", minutes=1.0, tests=5)


def fail(name: str = "a", label: Label = "FLAKY", error: str = "TooLate: no kernel in 10 s") -> Failure:
    return Failure(test=f"tests/machine/test_it.py::test_{name}", error=error, label=label)


def know(name: str = "a", days: int = 1, cause: str = "machine") -> Entry:
    return Entry(test=fail(name).test, cause=cause, since=NOW - timedelta(days=days))


def judge(
    *failures: Failure, entries: tuple[Entry, ...] = (), edited: str = "", result: PartResult = GREEN
) -> list[str]:
    return find_reasons([result], failures, entries, lambda test: bool(edited) and test.endswith(edited), NOW)


@pytest.mark.parametrize("label", ["FLAKY", "UNSTABLE"])
def test_a_late_test_lands(label: Label) -> None:
    assert judge(fail(label=label)) == []


def test_a_test_that_fails_alone_is_red() -> None:
    assert judge(fail(label="FAILED")) == ["tests/machine/test_it.py::test_a failed (also alone)"]


def test_a_part_that_fails_without_a_test_is_red() -> None:
    broken = PartResult(part="docs", minutes=1.0, is_broken=True)
    assert judge(result=broken) == ["docs failed, and no test says why"]


def test_a_flake_that_the_change_has_written_is_red() -> None:
    assert "written or edited" in judge(fail(), edited="test_a")[0]


def test_a_skip_without_a_reason_is_red() -> None:
    assert "without a reason" in judge(result=PartResult(part="test", minutes=1.0, reasonless=("t",)))[0]


def test_a_few_flakes_land_and_known_ones_do_not_count() -> None:
    names = "abcd"
    assert judge(*map(fail, names[:3])) == []
    assert judge(*map(fail, names)) == ["4 flaky tests, and at most 3 may be"]
    assert judge(*map(fail, names), entries=(know("a"),)) == []
    assert judge(*map(fail, names), entries=(know("a", days=15),)) != [], "its entry is too old"
    assert judge(fail("a", "UNSTABLE"), fail("b", "UNSTABLE")) == ["2 unstable tests, and at most 1 may be"]


def test_one_race_lands() -> None:
    races = [fail(name, error="AssertionError: assert 1 == 2") for name in "ab"]
    assert judge(races[0]) == []
    assert judge(*races) == ["2 races, and at most 1 may be"]
    assert judge(*races, entries=(know("a", cause="product"),)) == []
    assert judge(*races, entries=(know("a", days=4, cause="product"),)) != [], "a race counts for three days"


def test_the_file_has_a_bound() -> None:
    assert judge(entries=tuple(know(f"n{number}") for number in range(11))) != []


def test_the_table_has_races_first_and_lines_to_paste() -> None:
    failures = [fail("late"), fail("race", error='E assert "x" == 2')]
    text = describe([GREEN], failures, [], "yarn")
    assert text.index("FLAKY RACE") < text.index("test_late")
    assert 'error = "E assert \\"x\\" == 2"' in text
    assert text.splitlines()[-1] == "Green. This machine is slow: yarn, whose turn it is, did not run."
