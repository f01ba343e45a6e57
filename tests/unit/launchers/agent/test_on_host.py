"""What a host answers to a service that has only a login there. The agent is real."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.machine.daemons import settle
from roost.launchers.agent import on_host
from roost.launchers.agent.on_host import answer
from roost.launchers.daemon.daemon import is_alive
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.host_contact import HostAnswer, Question
from roost.launchers.protocol.messages import Lease, Owner, Reserve
from roost.launchers.protocol.rpc import ClientKeys, RpcError
from roost.placement.model import Request
from roost.placement.model.json_codec import decode, encode
from roost.scheduler.backends.key_pair import KeyPair, load_key_pair
from roost.testing.deadlines import allow_s

SETTINGS = AgentSettings(cpus=4, gpus=2, is_remote=True, divides_machine=True, idle_exit_s=60)
CONNECTION = "10.0.0.9 40000 127.0.0.1 22"


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    return load_key_pair(str(tmp_path / "keys" / "pair.json"), name="ssh", section="RoostSshBackend")


@pytest.fixture
def host_dir(runtime_dir: Path) -> Iterator[Path]:
    """Yield the runtime folder of the host. Its agent ends with the test."""
    yield runtime_dir
    settle(runtime_dir)


def ask(keys: KeyPair, **wishes: Any) -> HostAnswer:
    question = Question(name="agent-ssh-1", settings=SETTINGS, clients=(keys.public,), **wishes)
    found = answer(encode(question), CONNECTION)
    assert "problem" not in found, found
    return decode(HostAnswer, found)


def test_a_host_without_leases_measures_itself_and_keeps_no_agent(runtime_dir: Path, keys: KeyPair) -> None:
    found = ask(keys)
    assert (found.node.cpus, len(found.node.devices), found.endpoint) == (4, 2, "")
    assert not is_alive(runtime_dir / "agent-ssh-1")
    assert not (runtime_dir / "agent-ssh-1").exists()


def test_an_agent_begins_listens_where_ssh_came_in_and_is_found_again(host_dir: Path, keys: KeyPair) -> None:
    begun = ask(keys, begins=True)
    assert begun.endpoint.startswith("tcp://127.0.0.1:")
    assert begun.node.cpus == 4

    async def hold() -> None:
        client = AgentClient(begun.endpoint, keys.keys_for(begun.public))
        await client.connect()
        lease = Lease(id="roost:k:1", kernel_id="k", owner=Owner(user="ada"), request=Request(gpus=0.5))
        try:
            await client.reserve(Reserve(lease=lease, linger_s=60))
            again = await asyncio.to_thread(ask, keys)
            assert (again.endpoint, again.public, again.machine) == (
                begun.endpoint,
                begun.public,
                begun.machine,
            )
            assert sum(device.promised for device in again.node.devices) == 0.5
        finally:
            await client.release(lease.id)
            await client.close()

    asyncio.run(hold())


def test_a_machine_that_starts_again_is_another_one(tmp_path: Path) -> None:
    boot_id = tmp_path / "boot_id"
    names = set()
    for boot in ("one", "two"):
        boot_id.write_text(f"{boot}\n")
        names |= {on_host.name_machine(boot_id), on_host.name_machine(boot_id)}
    assert len(names) == 2
    assert all(name.startswith(f"{socket.gethostname()} ") for name in names)
    assert on_host.name_machine(tmp_path / "none") == socket.gethostname()


def test_nobody_else_is_accepted(host_dir: Path, keys: KeyPair, tmp_path: Path) -> None:
    begun = ask(keys, begins=True)
    stranger = load_key_pair(str(tmp_path / "other" / "pair.json"), name="ssh", section="RoostSshBackend")

    async def connect(with_keys: ClientKeys, timeout_s: float) -> None:
        client = AgentClient(begun.endpoint, with_keys)
        try:
            await client.connect(timeout_s=timeout_s)
        finally:
            await client.close()

    asyncio.run(connect(keys.keys_for(begun.public), allow_s(60)))
    with pytest.raises((RpcError, asyncio.TimeoutError)):
        asyncio.run(connect(stranger.keys_for(begun.public), 1))


def test_a_folder_of_another_user_is_one_clause(keys: KeyPair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOST_RUNTIME_DIR", "relative")
    question = Question(name="agent-ssh-1", settings=SETTINGS, clients=(keys.public,))
    found = answer(encode(question), CONNECTION)
    assert found == {"problem": "ROOST_RUNTIME_DIR must be an absolute path, not 'relative'"}
    assert "relative" not in os.listdir(".")
