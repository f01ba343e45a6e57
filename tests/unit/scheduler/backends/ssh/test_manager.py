"""Hosts as nodes: what roost knows of them, and when it asks them. The contacts are pretended."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from roost.launchers.protocol.host_contact import HostAnswer
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Node, Request
from roost.placement.model.json_codec import encode
from roost.placement.model.node import UNREACHABLE
from roost.scheduler.backends.key_pair import load_key_pair
from roost.scheduler.backends.ssh import manager as module
from roost.scheduler.backends.ssh.host_memory import HostMemory
from roost.scheduler.backends.ssh.manager import SshManager
from roost.scheduler.backends.ssh.open_ssh import HostProblem
from roost.scheduler.backends.ssh.settings import RoostSshBackend
from roost.testing.deadlines import allow_s

AGENT_KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"


class Hosts:
    """Pretended contacts. `machines` has the machine of each name, `problems` why a host does not answer."""

    def __init__(self) -> None:
        self.machines: dict[str, str] = {}
        self.problems: dict[str, str] = {}
        self.slow: dict[str, asyncio.Event] = {}
        self.asked: list[tuple[str, bool]] = []
        self.prologues: list[tuple[str, str]] = []
        self.now = self.most = self.cleared = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    async def run(self, host: str, program: str, arguments: Any, **_: Any) -> dict[str, Any]:
        if "question" not in arguments:
            self.prologues.append((host, arguments["kernel_prologue"]))
            return {"variables": {"WHERE": host}}
        begins = arguments["question"]["begins"]
        self.asked.append((host, begins))
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            if host in self.slow:
                await self.slow[host].wait()
            await asyncio.sleep(0)
        finally:
            self.now -= 1
        if host in self.problems:
            raise HostProblem(self.problems[host], kind="unreachable")
        agent = {"endpoint": f"tcp://127.0.0.1:{self.port}", "public": AGENT_KEY} if begins else {}
        node = Node(id="itself", cpus=4, metrics_age_s=0.0)
        return dict(encode(HostAnswer(machine=self.machines.get(host, host), node=node, **agent)))

    def clear(self) -> None:
        self.cleared += 1


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    hosts = Hosts()
    yield hosts
    hosts.listener.close()


@pytest.fixture
async def make(
    hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., SshManager]]:
    monkeypatch.setattr(module, "Contacts", lambda: hosts)
    monkeypatch.setattr(module, "_FIRST_S", 0.05)
    made: list[SshManager] = []

    def make(*names: str, **settings: Any) -> SshManager:
        section = RoostSshBackend(hosts={name: {"rack": name} for name in names}, **settings)
        keys = load_key_pair(str(tmp_path / "keys" / "pair.json"), name="ssh", section="RoostSshBackend")
        made.append(SshManager(section, section.agent_settings(), keys, HostMemory(tmp_path / "hosts.json")))
        return made[-1]

    yield make
    for each in made:
        await each.close()


def nodes(manager: SshManager) -> dict[str, Node]:
    return {name: manager.build_node(node, None) for name, node in manager.membership.nodes.items()}


async def settle(manager: SshManager) -> None:
    """Wait until all readings have ended, and read the nodes."""
    while manager._tasks:
        await asyncio.wait(tuple(manager._tasks), timeout=allow_s(10))
    await manager.membership.read()


async def test_hosts_are_measured_without_an_agent(make: Any, hosts: Hosts) -> None:
    manager = make("n1", "n2")
    await manager.membership.join("")
    await settle(manager)
    assert {name: (node.cpus, node.labels) for name, node in nodes(manager).items()} == {
        "n1": (4, {"rack": "n1"}),
        "n2": (4, {"rack": "n2"}),
    }
    assert hosts.asked == [("n1", False), ("n2", False)]


async def test_a_slow_host_delays_no_other(make: Any, hosts: Hosts) -> None:
    hosts.slow["n2"] = asyncio.Event()
    manager = make("n1", "n2")
    await manager.membership.join("")
    shown = nodes(manager)
    assert not shown["n1"].is_draining
    assert shown["n2"].drains_because == f"{UNREACHABLE}: roost has not reached it yet"
    assert manager.is_still_reading, "so no request is refused for good"
    hosts.slow["n2"].set()
    await settle(manager)
    assert not nodes(manager)["n2"].is_draining


async def test_two_names_of_one_machine_are_one_node(make: Any, hosts: Hosts) -> None:
    hosts.machines = {"n1": "same", "alias": "same"}
    manager = make("n1", "alias")
    await manager.membership.join("")
    await settle(manager)
    assert list(nodes(manager)) == ["n1"]
    (finding,) = await manager.diagnose()
    assert finding["what"] == "alias is the same machine as n1, and counts once"


async def test_an_unreachable_host_keeps_its_amounts_and_comes_back(make: Any, hosts: Hosts) -> None:
    manager = make("n1")
    await manager.membership.join("")
    hosts.problems["n1"] = "ssh cannot reach n1: no route"
    with pytest.raises(HostProblem, match="no route"):
        await manager.start_agent("n1")
    await manager.membership.read()
    node = nodes(manager)["n1"]
    assert (node.cpus, node.is_draining, node.drains_because) == (
        4,
        True,
        f"{UNREACHABLE}: ssh cannot reach n1: no route",
    )
    del hosts.problems["n1"]
    manager.refresh(connected=())
    await settle(manager)
    assert nodes(manager)["n1"].is_draining, "it was asked a moment ago"
    manager._asked_at["n1"] -= 100
    manager.refresh(connected=())
    await settle(manager)
    assert not nodes(manager)["n1"].is_draining


async def test_only_old_figures_are_measured_again_and_few_at_once(make: Any, hosts: Hosts) -> None:
    names = [f"n{number}" for number in range(10)]
    manager = make(*names)
    await manager.membership.join("")
    await settle(manager)
    hosts.asked.clear()
    manager.refresh(connected=())
    assert hosts.asked == [], "the figures are new"
    hosts.most = 0
    for name, node in manager._nodes.items():
        manager._nodes[name] = replace(node, seen_at=node.seen_at - 100)
    manager.refresh(connected={"n0"})
    await settle(manager)
    assert sorted(name for name, _ in hosts.asked) == names[1:], "the agent of n0 reports by itself"
    assert hosts.most == 4


async def test_a_started_agent_is_returned_with_the_keys_of_the_service(make: Any, hosts: Hosts) -> None:
    manager = make("n1")
    await manager.membership.join("")
    agent = await manager.start_agent("n1")
    assert agent.address.endpoint == f"tcp://127.0.0.1:{hosts.port}"
    assert agent.address.keys.server == AGENT_KEY
    assert hosts.asked[-1] == ("n1", True)


async def test_an_answer_without_a_form_is_one_sentence(
    make: Any, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(*_: Any, **__: Any) -> dict[str, Any]:
        return {"machine": 7}

    monkeypatch.setattr(hosts, "run", run)
    manager = make("n1")
    await manager.membership.join("")
    await settle(manager)
    assert "n1 answered with what roost cannot read (" in nodes(manager)["n1"].drains_because


async def test_an_agent_whose_port_is_closed_for_this_machine_is_one_sentence(
    make: Any, hosts: Hosts
) -> None:
    manager = make("n1")
    await manager.membership.join("")
    hosts.listener.close()
    with pytest.raises(
        HostProblem, match=r"its kernels' ports cannot be reached from here .*Connection refused"
    ):
        await manager.start_agent("n1")
    await manager.membership.read()
    assert nodes(manager)["n1"].drains_because.startswith(UNREACHABLE)


async def test_the_next_service_begins_with_what_this_one_has_seen(make: Any, hosts: Hosts) -> None:
    first = make("n1", "n2")
    await first.membership.join("")
    await settle(first)
    await first.close()
    hosts.slow = {"n1": asyncio.Event(), "n3": asyncio.Event()}
    second = make("n1", "n3")
    await second.membership.join("")
    shown = nodes(second)
    assert (shown["n1"].cpus, shown["n1"].is_draining) == (4, False)
    assert shown["n3"].is_draining, "nobody has reached it"


async def test_a_damaged_memory_is_put_aside(make: Any, hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "hosts.json").write_text('{"hosts": {"n1": 7}}')
    manager = make("n1")
    await manager.membership.join("")
    assert not nodes(manager)["n1"].is_draining


async def test_a_changed_list_of_hosts_is_read_again(make: Any, hosts: Hosts, tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text("n1\nn2\n")
    manager = make(hosts_file=str(file))
    await manager.membership.join("")
    file.write_text("n2 zone=b\nn3\n")
    manager._listed_at -= 100
    manager.refresh(connected=())
    await settle(manager)
    assert {name: node.labels for name, node in nodes(manager).items()} == {"n2": {"zone": "b"}, "n3": {}}
    file.write_text("n2 zone=b extra\n")
    manager._listed_at -= 100
    manager.refresh(connected=())
    await settle(manager)
    assert list(nodes(manager)) == ["n2", "n3"]
    (finding,) = await manager.diagnose()
    assert "line 1" in finding["what"]
    assert finding["do"] == "write it as label=value"
    file.unlink()
    manager._listed_at -= 100
    manager.refresh(connected=())
    await settle(manager)
    (finding,) = await manager.diagnose()
    assert finding["what"].endswith(f"{file} cannot be read (No such file or directory)")
    assert "correct the setting" in finding["do"]


async def test_a_prologue_runs_once_on_each_host(make: Any, hosts: Hosts) -> None:
    manager = make("n1", "n2")
    await manager.membership.join("")
    await settle(manager)
    request = Request(options={"prologue": "module load cuda"})
    leases = [
        Lease(id=name, kernel_id=name, owner=Owner(user="ada"), request=request, node_id=name)
        for name in ("n1", "n2", "n1")
    ]
    for lease in leases:
        assert await manager.environment(lease, "") == {"WHERE": lease.node_id}
        assert await manager.environment(replace(lease, request=Request()), "") == {}
    assert hosts.prologues == [("n1", "module load cuda"), ("n2", "module load cuda")]
    hosts.machines["n1"] = "n1 since its next start"
    await manager.start_agent("n1")
    await manager.environment(leases[0], "")
    assert hosts.prologues[2:] == [("n1", "module load cuda")]


async def test_an_agent_out_of_reach_leaves_what_it_has_reported_last(make: Any, hosts: Hosts) -> None:
    manager = make("n1")
    await manager.membership.join("")
    await manager.start_agent("n1")
    manager.note_status("n1", Node(id="itself", cpus=4, cpus_promised=3, kernels=1))
    hosts.problems["n1"] = "ssh cannot reach n1: no route"
    manager.note_silence("n1")
    manager.note_silence("n1")
    await settle(manager)
    node = nodes(manager)["n1"]
    assert (node.cpus_promised, node.kernels, node.is_draining) == (3, 1, True)
    assert len(hosts.asked) == 3, "one contact, although two connections were lost"
    assert manager.membership.nodes["n1"].started_agent is None, "nobody takes the old address for a new one"


async def test_a_start_that_waits_has_hosts_measured_often(
    make: Any, hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its new figures wake the start, which asks for the nodes again. Without a start, nobody is asked again."""
    monkeypatch.setattr(module, "_LOOK_S", 0.0)
    manager = make("n1")
    await manager.membership.join("")
    await settle(manager)
    manager.refresh(connected=())
    hosts.asked.clear()
    manager._nodes["n1"] = replace(manager._nodes["n1"], seen_at=manager._nodes["n1"].seen_at - 20)
    await manager.wait_for_change()
    await settle(manager)
    assert hosts.asked == [("n1", False)], "20 s are old for a start that waits"
    manager._needed_at -= 100
    manager._nodes["n1"] = replace(manager._nodes["n1"], seen_at=manager._nodes["n1"].seen_at - 200)
    await manager.wait_for_change()
    await settle(manager)
    assert len(hosts.asked) == 1, "no start waits"
