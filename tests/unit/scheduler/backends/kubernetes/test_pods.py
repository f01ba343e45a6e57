"""A late list of pods must not undo the newer state that the watch and the creations have shown meanwhile."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.kubernetes.api import ApiError
from roost.scheduler.backends.kubernetes.cluster import KubernetesCluster
from roost.scheduler.backends.kubernetes.settings import RoostKubernetesBackend
from roost.scheduler.backends.kubernetes.watch import Reflector
from roost.scheduler.errors import LeaseConflict

LEASE = Lease(id="roost:k:1", kernel_id="k", owner=Owner(user="ada"), request=Request(), node_id="n1")
STATE = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
RUNNING = {"phase": "Running", "podIP": "10.0.0.7", "containerStatuses": [{"name": "kernel", "state": STATE}]}


class Watched:
    """A cluster without a server. Tests say what its watch shows, and what a list answers."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        config = {
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "kernels"}}],
            "users": [{"name": "u", "user": {}}],
        }
        (folder / "config").write_text(json.dumps(config))
        identity = str(folder / "keys" / "pair.json")
        settings = RoostKubernetesBackend(address=str(folder / "config"), image="a", identity_file=identity)
        self.cluster = KubernetesCluster(settings)
        self.cluster._pods["kernels"] = self._watch = Reflector(
            self.cluster._api, "", lambda raw: raw, self.cluster._on_pod, timeout_s=60.0
        )
        self._answer: list[dict[str, Any]] = []
        self.meanwhile: Callable[[], object] = lambda: None
        """Called after the server has read the pods, and before its answer arrives."""
        patch.setattr(self.cluster._api, "demand", self._demand)

    async def _demand(self, method: str, path: str, **_: object) -> dict[str, Any]:
        self.meanwhile()
        return {"items": self._answer}

    def pod(self, version: str, *, is_gated: bool = False, **changes: Any) -> dict[str, Any]:
        """Return the pod of LEASE at this resource version, as the API shows it."""
        pod = self.cluster._creator._build_pod(LEASE, "roost-ada-1", "key")
        pod["metadata"] |= {"uid": "1", "namespace": "kernels", "resourceVersion": version}
        if not is_gated:
            del pod["spec"]["schedulingGates"]
            pod["spec"]["nodeName"] = "n1"
        return copy.deepcopy({**pod, "status": {"phase": "Pending"}, **changes})

    def show(self, pod: dict[str, Any] | None) -> None:
        """Let the watch report the pod, or its removal if `pod` is None."""
        self._watch._set("1", pod)

    async def list_leases(self, pod: dict[str, Any]) -> list[tuple[str, str]]:
        """Return (state, reason) of each lease, while the API server's list has this pod only."""
        self._answer = [pod]
        return [(found.lease.state, found.lease.reason) for found in await self.cluster.pods()]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


async def test_a_pod_that_runs_meanwhile_is_not_pending_again(watched: Watched) -> None:
    pending, running = watched.pod("9"), watched.pod("10", status=RUNNING)
    watched.show(pending)
    watched.meanwhile = lambda: watched.show(running)
    assert await watched.list_leases(pending) == [("held", "")]
    watched.meanwhile = lambda: None
    assert await watched.list_leases(watched.pod("11")) != [("held", "")], "the list is newer than the watch"


async def test_a_pod_that_is_removed_meanwhile_is_not_there_again(watched: Watched) -> None:
    running = watched.pod("9", status=RUNNING)
    watched.show(running)
    watched.meanwhile = lambda: watched.show(None)
    assert await watched.list_leases(running) == []


async def test_a_pod_that_is_being_created_is_no_remains(watched: Watched) -> None:
    """A gated pod is lost if the service that created it has ended, but not while this service creates it."""
    gated = watched.pod("9", is_gated=True)
    assert await watched.list_leases(gated) == [("lost", "the service that created its pod ended meanwhile")]
    watched.cluster.creating = creating = {LEASE.id}
    watched.meanwhile = creating.clear
    assert await watched.list_leases(gated) == []
    watched.cluster._reported.add("1")  # as `create` does at its end
    assert [state for state, _ in await watched.list_leases(gated)] == ["pending"]


async def test_a_pod_that_is_deleted_before_it_has_a_node_is_a_conflict(watched: Watched) -> None:
    """The request is placed again. Only `create` can notice the deletion, because the watch skips pods in creation."""
    creator, pod = watched.cluster._creator, watched.pod("9")
    del pod["spec"]["nodeName"]
    creator._decided["1"] = asyncio.Event()
    deciding = asyncio.ensure_future(creator._await_decision("1", pod))
    for shown in (pod, None):
        await asyncio.sleep(0)
        watched.show(shown)
    with pytest.raises(LeaseConflict, match="its pod was deleted"):
        await asyncio.wait_for(deciding, 1)


async def test_a_pod_whose_creation_got_no_answer_is_completed(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is repeated on another connection. It then finds the pod of the first attempt."""
    calls: list[tuple[str, str]] = []
    created: dict[str, Any] = {}

    async def call(method: str, path: str, body: Any = None, **_: object) -> Any:
        calls.append((method, path.rpartition("/")[2]))
        if calls[-1] == ("POST", "pods"):
            body["metadata"] |= {"uid": "1", "namespace": "kernels"}
            created.update(body)
            raise ApiError(409, "AlreadyExists", "it is there already")
        return created

    async def demand(method: str, path: str, body: Any, **_: object) -> Any:
        return {**created, "spec": {**created["spec"], **body["spec"], "nodeName": "n1"}}

    creator = watched.cluster._creator
    monkeypatch.setattr(creator._api, "call", call)
    monkeypatch.setattr(creator._api, "demand", demand)
    assert (await creator.create(LEASE, None))["spec"]["schedulingGates"] == []
    assert calls == [("POST", "pods"), ("GET", created["metadata"]["name"]), ("POST", "secrets")]


async def test_the_events_of_a_new_pod_are_read_even_if_it_does_not_change(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod whose volume is missing changes no more once it is created. Only its events say why it waits."""

    async def create(*_: object) -> dict[str, Any]:
        return watched.pod("9")

    monkeypatch.setattr(watched.cluster._creator, "create", create)
    await watched.cluster.create(LEASE)
    assert ("events", "1") in watched.cluster._timers
    watched.cluster._timers.close()
