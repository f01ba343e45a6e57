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
from roost.scheduler.backends.yarn.held import Held
from roost.scheduler.backends.yarn.master.messages import Container, MasterEvent, Resources
from roost.scheduler.backends.yarn.rest import RestError
from roost.scheduler.backends.yarn.settings import RoostYarnBackend
from roost.scheduler.errors import BackendUnavailable

LEASE = Lease(id="a", kernel_id="k", node_id="", request=Request(), owner=Owner(user="ada"))
ASKED = Container(
    number=7, lease=dump_lease(LEASE), state="asked", resources=Resources(memory_mb=1024, vcores=1)
)
STARTED = replace(ASKED, state="started", node="127.0.0.1", container_id="container_1")


@pytest.fixture
async def silent_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[YarnCluster]:
    """Return a cluster whose ResourceManager does not answer, and in which no agent listens."""
    settings = RoostYarnBackend(address="http://127.0.0.1:9", identity_file=str(tmp_path / "identity"))
    cluster = YarnCluster(settings, idle_exit_s=1.0)

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(cluster._agents, "find", nothing)
    monkeypatch.setattr(cluster._agents, "end_stray", nothing)
    yield cluster
    await cluster.close()


def line(*containers: Container) -> Any:
    known = {container.number: container for container in containers}
    return SimpleNamespace(containers=known, is_connected=True, reason="", failure="", status=None)


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
    silent_cluster: YarnCluster, container: Container, reason: str
) -> None:
    master = line(container)
    silent_cluster.on_connected(master)
    await take(silent_cluster)
    master.containers.clear()
    silent_cluster.on_connected(master)
    assert [silent_cluster._view(held).lease.state for held in silent_cluster._held.values()] == ["lost"]
    pod = await asyncio.wait_for(take(silent_cluster), 60)
    assert (pod.lease.state, pod.lease.reason) == ("lost", reason)


async def test_an_ask_of_an_earlier_service_shows_why_it_waits(
    silent_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = iter(["queue default is full", "YARN's ResourceManager is away"])

    async def explain(held: Held) -> None:
        held.reason = next(reasons)

    monkeypatch.setattr(silent_cluster._creator, "explain", explain)
    master = line(ASKED)
    silent_cluster.on_connected(master)
    await take(silent_cluster)
    assert (await take(silent_cluster)).lease.reason == "queue default is full"
    silent_cluster.on_event(master, MasterEvent(kind="away"))
    assert (await take(silent_cluster)).lease.reason == "YARN's ResourceManager is away"


async def test_queues_and_node_labels_are_read_again(
    silent_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.scheduler.backends.yarn.cluster._READ_QUEUES_S", 0.01)
    read = asyncio.Event()
    problems: list[Exception] = [RestError(500, "not now"), BackendUnavailable("away")]

    async def read_queues(rest: object) -> None:
        if problems:
            raise problems.pop()
        read.set()

    monkeypatch.setattr(silent_cluster._queues, "read_queues", read_queues)
    following = asyncio.create_task(silent_cluster._follow_queues())
    await asyncio.wait_for(read.wait(), 60)
    following.cancel()


async def test_a_change_shows_the_lease_as_it_is_when_it_is_taken(silent_cluster: YarnCluster) -> None:
    silent_cluster.on_connected(line(STARTED))
    keys = ClientKeys(server="", public="", secret="")
    silent_cluster._held[7].address = AgentAddress(endpoint="tcp://127.0.0.1:9", keys=keys)
    assert (await take(silent_cluster)).address == silent_cluster._held[7].address


async def test_a_lost_lease_is_kept_until_its_loss_was_reported(silent_cluster: YarnCluster) -> None:
    master = line(STARTED)
    silent_cluster.on_connected(master)
    await take(silent_cluster)
    silent_cluster.on_ended(master, "an operator ended the application")
    silent_cluster.on_connected(master)  # changes nothing
    assert len(silent_cluster._held) == 1
    changes = silent_cluster.changes()
    reasons = [
        change.pod.lease.reason
        for change in [await anext(changes) for _ in range(2)]
        if change.pod is not None
    ]
    assert reasons == ["an operator ended the application"]
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(changes), 0.05)
    assert not silent_cluster._held


async def test_the_end_of_an_agent_is_explained_by_yarn(
    silent_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """YARN never reports the end of a released container. roost therefore waits for the report before the release."""
    monkeypatch.setattr("roost.scheduler.backends.yarn.cluster._CAUSE_S", 0.5)
    released: list[int] = []
    master = line(STARTED)

    async def release(number: int) -> None:
        released.append(number)

    async def wait(timeout_s: float) -> bool:
        return True

    master.release, master.wait = release, wait
    silent_cluster.on_connected(master)
    explaining = asyncio.ensure_future(silent_cluster.explain_end("a"))
    await asyncio.sleep(0.05)
    deleting = asyncio.ensure_future(silent_cluster.delete("a"))
    await asyncio.sleep(0.05)
    assert not explaining.done()
    assert not released
    ended = replace(STARTED, state="ended", exit_status=-102)
    silent_cluster.on_event(master, MasterEvent(kind="container", container=ended))
    assert await explaining == "YARN gave its resources to others (preemption)"
    await deleting
    assert released == [7]
    assert await silent_cluster.explain_end("a") == ""  # it is unknown by now


async def test_yarn_does_not_report_the_end_of_a_container_in_time(
    silent_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.scheduler.backends.yarn.cluster._CAUSE_S", 0.1)
    silent_cluster.on_connected(line(STARTED))
    assert await silent_cluster.explain_end("a") == ""


async def test_a_resource_manager_that_starts_is_away(
    silent_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ResourceManager answers REST calls before it has read its node labels. roost must not use it yet."""

    def info() -> dict[str, Any]:
        return {"clusterInfo": {"haState": "INITIALIZING"}}

    starting = SimpleNamespace(address="http://rm:8088", cluster_information=info)
    monkeypatch.setattr(silent_cluster._rest, "_apis", [starting])
    with pytest.raises(BackendUnavailable, match="is initializing"):
        await silent_cluster.join()


async def test_a_lost_node_is_explained_before_the_lease_is_lost(
    silent_cluster: YarnCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease stays held until roost knows why the node is lost. No reading shows it as lost without that reason."""
    master, asked = line(STARTED), asyncio.Event()

    async def read() -> None:
        await asked.wait()

    monkeypatch.setattr(silent_cluster._nodes, "read", read)
    monkeypatch.setattr(silent_cluster._nodes.book, "trouble", lambda host: "was decommissioned")
    silent_cluster.on_connected(master)
    await take(silent_cluster)
    lost = replace(
        STARTED, state="ended", exit_status=-100, diagnostics="Container released on a *lost* node"
    )
    silent_cluster.on_event(master, MasterEvent(kind="container", container=lost))
    await asyncio.sleep(0.05)
    (held,) = silent_cluster._held.values()
    assert silent_cluster._view(held).lease.state == "held"
    asked.set()
    pod = await asyncio.wait_for(take(silent_cluster), 60)
    assert (pod.lease.state, pod.lease.reason) == ("lost", "127.0.0.1 was decommissioned")
