"""A running agent is used again, or replaced if its settings differ or it is older; not one of another protocol."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kit.machine.daemons import agent_folder
from kit.machine.real_agent import agent_pid
from roost.launchers.agent import find_or_start
from roost.launchers.agent.find_or_start import find_differences, find_or_start_agent
from roost.launchers.daemon.daemon import DaemonError
from roost.launchers.daemon.private_files import read_json, write_private_json
from roost.launchers.daemon.process import start_time
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import PROTOCOL, Lease, Owner, Reserve
from roost.launchers.protocol.shared_values import VERSION
from roost.placement.model import Request

SETTINGS = AgentSettings(cpus=4, memory_bytes=1000, gpus=2, idle_exit_s=60)
LEASE = Lease(id="roost:k:1", kernel_id="k", owner=Owner(user="ada"), request=Request())


@pytest.fixture
async def agent(runtime_dir: Path) -> AsyncIterator[AgentClient]:
    client = await connect(SETTINGS)
    yield client
    await client.close()
    last = await connect(SETTINGS)
    await last.release(LEASE.id)
    await last.leave()
    await last.close()


async def connect(settings: AgentSettings) -> AgentClient:
    client = AgentClient(*await find_or_start_agent(settings))
    await client.connect()
    return client


async def cpus_and_pid(settings: AgentSettings) -> tuple[float, int]:
    client = await connect(settings)
    try:
        return (await client.status()).cpus, agent_pid()
    finally:
        await client.close()


async def test_other_settings_wait_until_there_is_no_lease(
    agent: AgentClient, caplog: pytest.LogCaptureFixture
) -> None:
    pid = agent_pid()
    await agent.reserve(Reserve(lease=LEASE, linger_s=600))
    other = AgentSettings(cpus=1, idle_exit_s=60)
    assert await cpus_and_pid(other) == (4, pid)
    assert "keeps the settings" in caplog.text
    await agent.release(LEASE.id)
    cpus, next_pid = await cpus_and_pid(other)
    assert cpus == 1
    assert next_pid != pid


async def test_another_interpreter_replaces_an_agent_without_a_lease(agent: AgentClient) -> None:
    pid = agent_pid()
    _, next_pid = await cpus_and_pid(replace(SETTINGS, python="/opt/python"))
    assert next_pid != pid


async def test_an_older_agent_with_a_lease_passes_its_settings_on(
    agent: AgentClient, runtime_dir: Path
) -> None:
    pid = agent_pid()
    await agent.reserve(Reserve(lease=LEASE, linger_s=60))
    announced = read_json(agent_folder(runtime_dir) / "ready.json")
    announced["version"] = "0.0.0"
    announced["settings"]["of_old"] = 1
    write_private_json(agent_folder(runtime_dir) / "ready.json", announced)
    cpus, next_pid = await cpus_and_pid(AgentSettings(cpus=1, idle_exit_s=60))
    assert cpus == 4
    assert next_pid != pid
    again = await connect(SETTINGS)
    assert len((await again.holdings()).leases) == 1
    await again.close()


async def test_a_damaged_announcement_is_named(agent: AgentClient, runtime_dir: Path) -> None:
    file = agent_folder(runtime_dir) / "ready.json"
    announced = read_json(file)
    write_private_json(file, {**announced, "endpoint": 7})
    with pytest.raises(DaemonError, match=r"ready\.json is damaged: ") as caught:
        await find_or_start_agent(SETTINGS)
    write_private_json(file, announced)
    assert str(caught.value).endswith((f"; end that agent with `kill {agent_pid()}`", "; stop that agent"))


def test_settings_that_one_version_lacks_are_no_difference() -> None:
    old = json.loads('{"cpus": 4.0, "memory_bytes": 1000, "gpus": 2, "of_old": 1}')
    assert find_differences(old, SETTINGS) == {}
    assert find_differences({**old, "gpus": 1}, SETTINGS) == {"gpus": 1}


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1])
async def test_an_agent_of_another_protocol_is_left_alone(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, protocol: int
) -> None:
    folder = agent_folder(runtime_dir)
    for name, started_at in (("a", start_time(os.getpid())), ("ended", 1.0)):
        (folder / "kernels" / name).mkdir(parents=True)
        record = {"kernel_id": name, "pid": os.getpid(), "process_started_at": started_at, "more": 1}
        write_private_json(folder / "kernels" / name / "record.json", record)
    (folder / "kernels" / "damaged").mkdir()
    (folder / "kernels" / "damaged" / "record.json").write_text("{}")
    keys = {"server": "", "public": "", "secret": ""}
    announced = {"endpoint": "ipc:///nowhere", "keys": keys, "version": "9", "pid": 7, "settings": {}}
    monkeypatch.setattr(find_or_start, "ensure", lambda *_, **__: {**announced, "protocol": protocol})
    with pytest.raises(
        DaemonError, match=f"`kill 7 {os.getpid()}` there ends it and its kernels a$"
    ) as refusal:
        await find_or_start_agent(SETTINGS)
    assert f"is roost 9, whose protocol is not that of roost {VERSION};" in str(refusal.value)
    (folder / "kernels" / "a" / "record.json").unlink()
    with pytest.raises(DaemonError, match=r"`kill 7` there ends it: it has no kernel$"):
        await find_or_start_agent(SETTINGS)
