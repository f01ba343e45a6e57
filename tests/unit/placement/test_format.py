"""Amounts as text."""

from __future__ import annotations

from roost.placement.format import format_age


def test_an_age_has_one_unit() -> None:
    assert [format_age(seconds) for seconds in (-5, 59, 119, 120, 7200, 172_800)] == [
        "0 s", "59 s", "119 s", "2 min", "2 h", "2 d",
    ]  # fmt: skip
