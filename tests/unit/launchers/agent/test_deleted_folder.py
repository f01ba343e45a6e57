"""An agent whose folder was deleted keeps its kernels only while a scheduler can reach them."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from roost.launchers.agent import agent as module
from roost.launchers.agent.agent import Agent
from roost.launchers.daemon import daemon
from roost.launchers.daemon.daemon import Hold
from roost.launchers.daemon.tasks import Timers, cancel_all
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.testing.deadlines import allow_s


async def test_it_loses_its_leases_once_no_scheduler_is_subscribed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "_LOOK_AT_FOLDER_S", 0.01)
    monkeypatch.setattr(module, "_UNREACHED_S", 0.05)
    held = Hold(tmp_path / "agent")
    server = SimpleNamespace(subscribers={b"a scheduler"})
    ledger = SimpleNamespace(is_empty=False)
    reasons: list[str] = []

    async def lose_all(reason: str) -> None:
        reasons.append(reason)
        ledger.is_empty = True

    agent = Agent.__new__(Agent)  # with nothing but what the watch of the folder needs
    agent.left = asyncio.Event()
    vars(agent).update(
        _settings=AgentSettings(),
        _place=SimpleNamespace(speaks_for_node=True),
        _ledger=ledger,
        _timers=Timers(),
        _tasks=set(),
        leases=SimpleNamespace(lose_all=lose_all),
        server=server,
    )
    agent.watch_folder(held)
    shutil.rmtree(held.folder)
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(agent.left.wait(), 0.2)
    assert reasons == []
    server.subscribers.clear()
    await asyncio.wait_for(agent.left.wait(), allow_s(60))
    assert reasons == ["its folder was deleted"]
    await cancel_all(agent._tasks)
    held.close()
