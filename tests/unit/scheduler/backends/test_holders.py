"""How the other holders of this machine are described."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from roost.launchers.protocol.messages import Holder
from roost.scheduler.backends.holders import describe_holder, format_since

SINCE = time.mktime((2026, 3, 5, 10, 14, 0, 0, 0, -1))
NOW = SINCE + 3600


def test_a_holder_is_named_as_far_as_the_operator_allows() -> None:
    assert describe_holder(Holder(since=SINCE), NOW) == "another user's kernel since 10:14"
    assert describe_holder(Holder(user="ada", since=SINCE), NOW) == "ada's kernel since 10:14"
    own = "a kernel of yours in another runtime folder since 10:14"
    assert describe_holder(Holder(user="ada", is_own=True, since=SINCE), NOW) == own
    assert describe_holder(Holder()) == "another user's kernel", "nobody knows since when"


@pytest.fixture
def far_east(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC-9")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_times_are_local_and_have_a_date_if_they_are_not_of_today(far_east: None) -> None:
    noon = 1_772_679_600.0  # 2026-03-05 03:00 UTC
    assert format_since(noon, noon) == "12:00"
    assert format_since(noon - 12 * 3600, noon) == "00:00"
    assert format_since(noon - 12 * 3600 - 1, noon) == "2026-03-04 23:59"
    assert format_since(noon + 1e12, noon) == "12:00", "a stranger can write any time"
