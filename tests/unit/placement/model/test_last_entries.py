"""The dict that forgets its oldest entries."""

from __future__ import annotations

from roost.placement.model.last_entries import LastEntries


def test_only_the_last_entries_are_kept() -> None:
    kept = LastEntries[str, int](2)
    for number, name in enumerate("abca"):
        kept[name] = number
    assert kept == {"c": 2, "a": 3}
