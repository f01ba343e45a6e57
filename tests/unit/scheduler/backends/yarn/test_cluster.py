"""Leases on YARN after a master was started again, or its application has ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from roost.launchers.protocol.messages import AgentAddress, Lease, Owner
from roost.launchers.protocol.rpc import ClientKeys
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import Pod, dump_lease
from roost.scheduler.backends.yarn.cluster import YarnCluster
from roost.scheduler.backends.yarn.container_agents import ContainerAgents
from roost.scheduler.backends.yarn.creation import ContainerCreator
from roost.scheduler.backends.yarn.held import Held
from roost.scheduler.backends.yarn.master.messages import Container, MasterEvent, Resources
from roost.scheduler.backends.yarn.node_reader import NodeReader
from roost.scheduler.backends.yarn.nodes import NodeBook
from roost.scheduler.backends.yarn.rest import Rest, RestError
from roost.scheduler.backends.yarn.settings import RoostYarnBackend
from roost.scheduler.errors import BackendUnavailable
from roost.testing.deadlines import allow_s

LEASE = Lease(id="a", kernel_id="k", node_id="", request=Request(), owner=Owner(user="ada"))
ASKED = Container(
    number=7, lease=dump_lease(LEASE), state="asked", resources=Resources(memory_mb=1024, vcores=1)
)
STARTED = replace(ASKED, state="started", node="127.0.0.1", container_id="container_1")


class EmptyRest(Rest):
    """A ResourceManager without applications, nodes and queues. Each reading of the queues takes a problem, if any."""

    def __init__(self, settings: RoostYarnBackend) -> None:
        super().__init__(settings)
        self.problems: list[Exception] = []
        self.is_read = asyncio.Event()
        """Set when the node labels were read, which follow the queues."""

    async def info(self) -> dict[str, Any]:
        return {}

    async def conf(self) -> dict[str, str]:
        return {}

    async def applications(self, tag: str) -> list[dict[str, Any]]:
        return []

    async def nodes(self) -> list[dict[str, Any]]:
        return []

    async def labels(self) -> dict[str, bool]:
        self.is_read.set()
        return {}

    async def new_application(self) -> tuple[str, dict[str, Any]]:
        return "application_1", {"memory": 1024, "vCores": 1}

    async def queues(self) -> dict[str, Any]:
        if self.problems:
            raise self.problems.pop()
        return {}


@pytest.fixture
def rest(tmp_path: Path) -> EmptyRest:
    return EmptyRest(RoostYarnBackend(address="http://127.0.0.1:9"))


@pytest.fixture
async def quiet_cluster(
    rest: EmptyRest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[YarnCluster]:
    """Return a cluster in which no agent listens."""

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(ContainerAgents, "find", nothing)
    monkeypatch.setattr(ContainerAgents, "end_stray", nothing)
    settings = RoostYarnBackend(
        address="http://127.0.0.1:9", schedulers=["127.0.0.1:9"], identity_file=str(tmp_path / "identity")
    )
    cluster = YarnCluster(settings, rest, idle_exit_s=1.0)
    yield cluster
    await cluster.close()


def line(*containers: Container) -> Any:
    known = {container.number: container for container in containers}
    return SimpleNamespace(containers=known, is_connected=True, reason="", failure="", status=None)


async def states(cluster: YarnCluster) -> list[str]:
    return [pod.lease.state for pod in await cluster.pods()]


async def take(cluster: YarnCluster) -> Pod:
    """Return the pod of the next change of a lease."""
    async for change in cluster.changes():
        if change.kind == "pod":
            assert change.pod is not None
            return change.pod
    raise AssertionError


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        (ASKED, "roost's application master was started again"),
        (STARTED, "its container ended while roost's application master started again"),
    ],
)
async def test_a_container_that_the_next_attempt_does_not_have(
    quiet_cluster: YarnCluster, container: Container, reason: str
) -> None:
    master = line(container)
    quiet_cluster.on_connected(master)
    await take(quiet_cluster)
    master.containers.clear()
    quiet_cluster.on_connected(master)
    assert await states(quiet_cluster) == ["lost"]
    pod = await asyncio.wait_for(take(quiet_cluster), allow_s(60))
    assert (pod.lease.state, pod.lease.reason) == ("lost", reason)


async def test_an_ask_of_an_earlier_service_shows_why_it_waits(
    quiet_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = iter(["queue default is full", "YARN's ResourceManager is away"])

    async def explain(self: ContainerCreator, held: Held) -> None:
        held.reason = next(reasons)

    monkeypatch.setattr(ContainerCreator, "explain", explain)
    master = line(ASKED)
    quiet_cluster.on_connected(master)
    await take(quiet_cluster)
    assert (await take(quiet_cluster)).lease.reason == "queue default is full"
    quiet_cluster.on_event(master, MasterEvent(kind="away"))
    assert (await take(quiet_cluster)).lease.reason == "YARN's ResourceManager is away"


async def test_queues_and_node_labels_are_read_again(
    quiet_cluster: YarnCluster, rest: EmptyRest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.scheduler.backends.yarn.cluster._READ_QUEUES_S", 0.01)
    await quiet_cluster.join()
    rest.problems += [RestError(500, "not now"), BackendUnavailable("away")]
    rest.is_read.clear()
    await asyncio.wait_for(rest.is_read.wait(), allow_s(60))
    assert not rest.problems


async def test_a_change_shows_the_lease_as_it_is_when_it_is_taken(
    quiet_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = AgentAddress(endpoint="tcp://127.0.0.1:9", keys=ClientKeys(server="", public="", secret=""))
    is_found = asyncio.Event()

    async def find(self: ContainerAgents, held: Held, is_wanted: object) -> bool:
        held.address = address
        is_found.set()
        return False

    monkeypatch.setattr(ContainerAgents, "find", find)
    quiet_cluster.on_connected(line(STARTED))
    await asyncio.wait_for(is_found.wait(), allow_s(60))
    assert (await take(quiet_cluster)).address == address


async def test_a_lost_lease_is_kept_until_its_loss_was_reported(quiet_cluster: YarnCluster) -> None:
    master = line(STARTED)
    quiet_cluster.on_connected(master)
    await take(quiet_cluster)
    quiet_cluster.on_ended(master, "an operator ended the application")
    quiet_cluster.on_connected(master)  # changes nothing
    assert await states(quiet_cluster) == ["lost"]
    other = replace(STARTED, number=8, lease=dump_lease(replace(LEASE, id="b")))
    quiet_cluster.on_connected(line(other))
    changes = quiet_cluster.changes()
    found = [
        change.pod.lease for change in [await anext(changes) for _ in range(3)] if change.pod is not None
    ]
    assert [(lease.id, lease.reason) for lease in found] == [
        ("a", "an operator ended the application"),
        ("b", ""),
    ]
    assert [pod.lease.id for pod in await quiet_cluster.pods()] == ["b"]


async def test_the_end_of_an_agent_is_explained_by_yarn(
    quiet_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """YARN never reports the end of a released container. roost therefore waits for the report before the release."""
    monkeypatch.setattr("roost.scheduler.backends.yarn.cluster._CAUSE_S", 60.0)
    released: list[int] = []
    master = line(STARTED)

    async def release(number: int) -> None:
        released.append(number)

    async def wait(timeout_s: float) -> bool:
        return True

    master.release, master.wait = release, wait
    quiet_cluster.on_connected(master)
    explaining = asyncio.ensure_future(quiet_cluster.explain_end("a"))
    await asyncio.sleep(0.05)
    deleting = asyncio.ensure_future(quiet_cluster.delete("a"))
    await asyncio.sleep(0.05)
    assert not explaining.done()
    assert not released
    ended = replace(STARTED, state="ended", exit_status=-102)
    quiet_cluster.on_event(master, MasterEvent(kind="container", container=ended))
    assert await explaining == "YARN gave its resources to others (preemption)"
    await deleting
    assert released == [7]
    assert await quiet_cluster.explain_end("a") == ""  # it is unknown by now


async def test_yarn_does_not_report_the_end_of_a_container_in_time(
    quiet_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.scheduler.backends.yarn.cluster._CAUSE_S", 0.1)
    quiet_cluster.on_connected(line(STARTED))
    assert await quiet_cluster.explain_end("a") == ""


async def test_a_lost_node_is_explained_before_the_lease_is_lost(
    quiet_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease stays held until roost knows why the node is lost. No reading shows it as lost without that reason."""
    master, is_reading, asked = line(STARTED), asyncio.Event(), asyncio.Event()

    async def read(self: NodeReader) -> None:
        is_reading.set()
        await asked.wait()

    monkeypatch.setattr(NodeReader, "read", read)
    monkeypatch.setattr(NodeBook, "trouble", lambda self, host: "was decommissioned")
    quiet_cluster.on_connected(master)
    await take(quiet_cluster)
    lost = replace(
        STARTED, state="ended", exit_status=-100, diagnostics="Container released on a *lost* node"
    )
    quiet_cluster.on_event(master, MasterEvent(kind="container", container=lost))
    await asyncio.wait_for(is_reading.wait(), allow_s(60))
    assert await states(quiet_cluster) == ["held"]
    asked.set()
    pod = await asyncio.wait_for(take(quiet_cluster), allow_s(60))
    assert (pod.lease.state, pod.lease.reason) == ("lost", "127.0.0.1 was decommissioned")
