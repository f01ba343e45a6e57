"""The watch for hangs, with a clock of the test."""

from __future__ import annotations

import pytest

from roost.launchers.agent.machine import hang_watch
from roost.launchers.agent.machine.hang_watch import HangWatch


def test_messages_of_before_the_end_of_a_hang_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(hang_watch.time, "monotonic", lambda: now)
    watch = HangWatch()
    now += 60.0
    assert not watch.has_just_hung, "it does not run yet"
    watch._look()
    assert not watch.has_just_hung
    now += 11.0  # the machine is busy
    assert not watch.has_just_hung
    watch._look()
    assert not watch.has_just_hung
    now += 13.0
    assert watch.has_just_hung, "a message is read before the watch runs again"
    watch._look()
    assert watch.has_just_hung, "another one is read soon afterwards"
    now += 0.9
    watch._look()
    assert watch.has_just_hung
    now += 0.2
    assert not watch.has_just_hung
