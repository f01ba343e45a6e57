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


async def test_callers_have_failed_logins_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, cleared = [1000.0], list[float]()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    for name in ("SSH_AUTH_SOCK", "KRB5CCNAME"):
        monkeypatch.delenv(name, raising=False)
    settings = RoostSshBackend(hosts=["n1"])
    key_pair = load_key_pair(str(tmp_path / "keys" / "pair.json"), name="ssh", section="RoostSshBackend")
    manager = SshManager(settings, settings.agent_settings(), key_pair, HostMemory(tmp_path / "hosts.json"))
    monkeypatch.setattr(manager._contacts, "clear", lambda: cleared.append(now_s[0]))
    same = {"SSH_AUTH_SOCK": "", "KRB5CCNAME": ""}
    for at_s in (1000.0, 1001.0, 1030.0, 1031.0, 1050.0, 1061.5):
        now_s[0] = at_s
        manager.note_caller(same)
    assert cleared == [1000.0, 1031.0, 1061.5]
    now_s[0] = 1062.0
    manager.note_caller({"SSH_AUTH_SOCK": "", "KRB5CCNAME": "KCM:7"})
    assert cleared[-1] == 1062.0, "other credentials count at once"
