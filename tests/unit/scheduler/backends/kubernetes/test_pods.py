"""A late list of pods must not undo the newer state that the watch and the creations have shown meanwhile."""

from __future__ import annotations

import asyncio
import copy
import queue
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import Pod
from roost.scheduler.backends.kubernetes.api import Api, ApiError
from roost.scheduler.backends.kubernetes.cluster import KubernetesCluster
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.errors import LeaseConflict
from roost.testing.deadlines import allow_s

LEASE = Lease(id="roost:k:1", kernel_id="k", owner=Owner(user="ada"), request=Request(), node_id="n1")
STATE = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
RUNNING = {"phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [{"name": "kernel", "state": STATE}]}
PODS = "/api/v1/namespaces/kernels/pods"


class FakeWatch:
    """A watch that reports the objects of a queue, and calls `on_read` after each. None ends it."""

    def __init__(self, on_read: Callable[[], object]) -> None:
        self.objects: queue.Queue[tuple[str, dict[str, Any]] | None] = queue.Queue()
        self._on_read = on_read

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while (found := self.objects.get()) is not None:
            yield {"type": found[0], "object": found[1]}
            self._on_read()  # the reader asks for the next one

    def close(self) -> None:
        self.objects.put(None)


class FakeApi(Api):
    """An API server with one pod. Tests set what lists answer, and what the watch of pods shows."""

    def __init__(self) -> None:
        super().__init__("", "")
        self.namespace = "kernels"
        self.calls: list[tuple[str, str]] = []
        """Method and last part of the path of each call."""
        self.posted: dict[str, Any] = {}
        """The created pod at first."""
        self.created: dict[str, Any] = {}
        """The created pod now."""
        self.is_gate_open = asyncio.Event()
        self.node_id = "n1"
        """The node of a created pod, or empty if it gets none."""
        self.are_answers_lost = False
        """True if a repeated creation finds the pod of the first attempt."""
        self.are_events_read = asyncio.Event()
        self.listed: list[dict[str, Any]] = []
        self.meanwhile: Callable[[], Awaitable[None]] | None = None
        """Called after the server has read the pods, and before its answer arrives."""
        self._is_shown = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._watch = FakeWatch(lambda: loop.call_soon_threadsafe(self._is_shown.set))

    async def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, **query: Any
    ) -> dict[str, Any]:
        self.calls.append((method, path.rpartition("/")[2]))
        if path.endswith("/selfsubjectreviews"):
            return {"status": {"userInfo": {"username": "roost"}}}
        if path.endswith("/events"):
            self.are_events_read.set()
            return {"items": []}
        if not path.startswith("/api/v1/namespaces/kernels/"):
            raise ApiError(404, "NotFound", "there is none")
        if (method, path) == ("GET", PODS):
            answer = {"items": self.listed}
            if self.meanwhile is not None:
                await self.meanwhile()
            return answer
        if (method, path) == ("POST", PODS) and body is not None and "dryRun" not in query:
            metadata = {**body["metadata"], "uid": "1", "namespace": "kernels", "resourceVersion": "8"}
            self.posted = {**body, "metadata": metadata, "status": {"phase": "Pending"}}
            self.created = copy.deepcopy(self.posted)
            if self.are_answers_lost:
                raise ApiError(409, "AlreadyExists", "it is there already")
        if method == "PATCH" and body is not None and "spec" in body:
            self.created["spec"] |= {**body["spec"], "nodeName": self.node_id}
            self.is_gate_open.set()
        return copy.deepcopy(self.created)

    def request(self, method: str, path: str, body: object = None, **query: Any) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": "1"}, "items": []}

    def watch(self, path: str, query: object, read_s: float) -> Any:
        return self._watch if path == PODS else FakeWatch(lambda: None)

    async def show(self, pod: dict[str, Any] | None) -> None:
        """Let the watch report the pod, or its removal if `pod` is None. Return when roost knows it."""
        self._is_shown.clear()
        self._watch.objects.put(("MODIFIED", pod) if pod is not None else ("DELETED", self.posted))
        await asyncio.wait_for(self._is_shown.wait(), allow_s(60))


class Watched:
    """A cluster that has joined the API server `api`, where an earlier service of the user has created a pod."""

    def __init__(self, folder: Path) -> None:
        identity = str(folder / "keys" / "pair.json")
        self._settings = RoostKubernetesBackend(image="a", identity_file=identity, report_address="")
        self.api = FakeApi()
        self.cluster = KubernetesCluster(self._settings, self.api)

    async def open(self) -> None:
        earlier = KubernetesCluster(self._settings, self.api)
        await earlier.create(LEASE)
        await earlier.close()
        self.api.is_gate_open.clear()
        await self.cluster.join()

    def pod(self, version: str, *, is_gated: bool = False, **changes: Any) -> dict[str, Any]:
        """Return the pod of LEASE at this resource version, as the API shows it."""
        pod = copy.deepcopy({**(self.api.posted if is_gated else self.api.created), **changes})
        pod["metadata"]["resourceVersion"] = version
        return pod

    async def list_leases(self, pod: dict[str, Any]) -> list[tuple[str, str]]:
        """Return (state, reason) of each lease, while the API server's list has this pod only."""
        self.api.listed = [pod]
        return [(found.lease.state, found.lease.reason) for found in await self.cluster.pods()]

    async def begin_creation(self) -> asyncio.Task[Pod]:
        """Begin to create the pod again, which gets no node. Return when roost waits for Kubernetes' decision."""
        self.api.node_id = ""
        creating = asyncio.ensure_future(self.cluster.create(LEASE))
        await asyncio.wait_for(self.api.is_gate_open.wait(), allow_s(60))
        return creating


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    watched = Watched(tmp_path)
    await watched.open()
    yield watched
    await watched.cluster.close()


async def test_a_pod_that_runs_meanwhile_is_not_pending_again(watched: Watched) -> None:
    pending, running = watched.pod("9"), watched.pod("10", status=RUNNING)
    await watched.api.show(pending)
    watched.api.meanwhile = lambda: watched.api.show(running)
    assert await watched.list_leases(pending) == [("held", "")]
    watched.api.meanwhile = None
    assert await watched.list_leases(watched.pod("11")) != [("held", "")], "the list is newer than the watch"


async def test_a_pod_that_is_removed_meanwhile_is_not_there_again(watched: Watched) -> None:
    running = watched.pod("9", status=RUNNING)
    await watched.api.show(running)
    watched.api.meanwhile = lambda: watched.api.show(None)
    assert await watched.list_leases(running) == []


async def test_a_pod_that_is_being_created_is_no_remains(watched: Watched) -> None:
    """A gated pod is lost if the service that created it has ended, but not while this service creates it."""
    gated = watched.pod("9", is_gated=True)
    assert await watched.list_leases(gated) == [("lost", "the service that created its pod ended meanwhile")]
    watched.cluster.creating = creating = {LEASE.id}

    async def end_creation() -> None:
        creating.clear()

    watched.api.meanwhile = end_creation
    assert await watched.list_leases(gated) == []
    await watched.cluster.create(LEASE)
    assert [state for state, _ in await watched.list_leases(gated)] == ["pending"]


async def test_a_pod_that_is_deleted_before_it_has_a_node_is_a_conflict(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is placed again. Only `create` can notice the deletion, because the watch skips pods in creation."""
    monkeypatch.setattr("roost.scheduler.backends.kubernetes.creation._DECIDED_S", allow_s(60))
    creating = await watched.begin_creation()
    await watched.api.show(watched.pod("9"))
    await watched.api.show(None)
    with pytest.raises(LeaseConflict, match="its pod was deleted"):
        await asyncio.wait_for(creating, allow_s(60))


async def test_a_pod_whose_creation_got_no_answer_is_completed(watched: Watched) -> None:
    """The call is repeated on another connection. It then finds the pod of the first attempt."""
    watched.api.are_answers_lost = True
    watched.api.calls.clear()
    await watched.cluster.create(LEASE)
    name = watched.api.created["metadata"]["name"]
    assert watched.api.calls == [("POST", "pods"), ("GET", name), ("POST", "secrets"), ("PATCH", name)]
    assert watched.api.created["spec"]["schedulingGates"] == []


async def test_the_events_of_a_new_pod_are_read_even_if_it_does_not_change(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod whose volume is missing changes no more once it is created. Only its events say why it waits."""
    monkeypatch.setattr("roost.scheduler.backends.kubernetes.cluster._EVENTS_AFTER_S", 0.01)
    creating = await watched.begin_creation()
    bound = watched.pod("9")
    bound["spec"]["nodeName"] = "n1"
    await watched.api.show(bound)
    await creating
    await asyncio.wait_for(watched.api.are_events_read.wait(), allow_s(60))
