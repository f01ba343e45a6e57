"""Failed logins are tried again when a person calls, but not with each call."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from roost.scheduler.backends.key_pair import load_key_pair
from roost.scheduler.backends.ssh import manager as module
from roost.scheduler.backends.ssh.host_memory import HostMemory
from roost.scheduler.backends.ssh.manager import SshManager
from roost.scheduler.backends.ssh.settings import RoostSshBackend


@pytest.fixture
def now_s() -> list[float]:
    return [1000.0]


@pytest.fixture
def cleared() -> list[float]:
    return []


@pytest.fixture
def manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now_s: list[float], cleared: list[float]
) -> SshManager:
    """Return a manager whose clock shows `now_s`, and which notes in `cleared` when failures are forgotten."""
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    settings = RoostSshBackend(hosts=["n1"])
    key_pair = load_key_pair(str(tmp_path / "keys" / "pair.json"), name="ssh", section="RoostSshBackend")
    manager = SshManager(settings, settings.agent_settings(), key_pair, HostMemory(tmp_path / "hosts.json"))
    monkeypatch.setattr(manager._contacts, "clear", lambda: cleared.append(now_s[0]))
    return manager


def test_callers_have_failed_logins_tried_again(
    manager: SshManager, now_s: list[float], cleared: list[float]
) -> None:
    for at_s in (1000.0, 1001.0, 1030.0, 1031.0, 1050.0, 1061.5):
        now_s[0] = at_s
        manager.note_caller()
    assert cleared == [1000.0, 1031.0, 1061.5]


async def test_a_start_that_waits_has_failed_logins_tried_again(
    manager: SshManager, now_s: list[float], cleared: list[float]
) -> None:
    """A person may mend a login, and start a kernel soon after the last one."""
    manager.note_caller()
    now_s[0] = 1010.0
    manager.note_caller()
    for at_s in (1029.0, 1031.0, 1070.0):
        now_s[0] = at_s
        manager._changed.set()
        await manager.wait_for_change()
    assert cleared == [1000.0, 1031.0]
