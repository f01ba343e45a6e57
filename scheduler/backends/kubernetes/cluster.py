"""`KubernetesCluster`: the pods of one service in a Kubernetes cluster, for `AgentPerKernelBackend`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from ipaddress import ip_address
from typing import Any, NoReturn

from roost.launchers.daemon.supervision import keep_running
from roost.launchers.daemon.tasks import Timers, cancel_all, in_thread, spawn
from roost.launchers.protocol.messages import Launch, Lease
from roost.placement import Node, Request
from roost.scheduler.backends.agent_per_kernel import Pod, PodChange, PodCluster
from roost.scheduler.backends.agent_per_kernel.address_reports import AddressReports
from roost.scheduler.backends.key_pair import KeyPair, load_key_pair
from roost.scheduler.errors import BackendUnavailable

from .allow_lists import is_pattern
from .api import Api, ApiError, JsonObject
from .creation import PodCreator, agent_key
from .metrics import MetricsReader, Use
from .names import (
    LEASE_LABEL,
    RELEASED_ANNOTATION,
    SERVICE_LABEL,
    digest,
)
from .nodes import NodeBook, PodUse, read_node, read_use
from .pod_end import explain_end
from .pod_spec import PodTemplate
from .pod_state import (
    DELETED,
    News,
    is_ending,
    is_gated,
    is_waiting,
    latest,
    read_events,
    read_lease,
    read_pod,
)
from .settings import RoostKubernetesBackend
from .watch import Reflector

log = logging.getLogger(__name__)

_JOIN_S = 300.0
"""How long the first reading of the cluster may take. Each page has its own, shorter deadline."""
_EVENTS_AFTER_S = 2.0
"""How long to wait before the events of a waiting pod are read, the first time and each later time."""
_OWN_ADDRESS_S = 5.0
"""How long the API server's name may take to be resolved."""
_NODES_AFTER_S = 0.02
"""How long changes of nodes are collected before they are reported."""


class KubernetesCluster(PodCluster):
    """Creates, deletes and watches the pods whose label names this service's key pair, through `api`."""

    name = "Kubernetes"

    def __init__(self, settings: RoostKubernetesBackend, api: Api) -> None:
        self._settings = settings
        self._template = PodTemplate(settings)
        self._api = api
        self._reports = AddressReports(self._on_report)
        self._creator = PodCreator(
            self._api, self._template, lambda: self._key_pair, self._raw, self._reports
        )
        self._changes: asyncio.Queue[PodChange | Exception] = asyncio.Queue()
        self._timers = Timers()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._uses: Reflector[PodUse | None] | None = None
        self._pods: dict[str, Reflector[JsonObject]] = {}
        self._book = NodeBook()
        self._ending: dict[str, PodUse] = {}
        """The resources that roost's ending pods take, by uid, as `_book` counts them."""
        self._news: dict[str, News] = {}
        """The news from the events of waiting pods, by uid."""
        self._is_new = True
        """True until the pods are read for the first time.

        Pods that are ending at that time belong to an earlier service.
        """
        self._reported: set[str] = set()
        """Uids of the pods that were reported as live."""

    @cached_property
    def _key_pair(self) -> KeyPair:
        """The service's key pair.

        It is created only after the cluster has answered, so that a wrong address leaves no file.
        """
        file = self._settings.identity_file
        return load_key_pair(file, name="kubernetes", section="RoostKubernetesBackend")

    async def join(self) -> str:
        await self._stop()
        await self._creator.read_user()
        await self._creator.check_template(Request())
        settings = self._settings
        self._book, self._ending = NodeBook(), {}
        nodes = self._reflect(
            "/api/v1/nodes", lambda raw: read_node(raw, settings.gpu_resource), self._on_node
        )
        selector = {"labelSelector": f"{SERVICE_LABEL}={self._key_pair.label}"}
        self._pods = {
            path: self._reflect(
                path,
                lambda raw: raw if self._creator.is_ours(raw) else None,
                self._on_pod,
                selector,
            )
            for path in self._pod_paths()
        }
        metrics = MetricsReader(self._api, self._on_metrics)
        keep_running(metrics.run, self._tasks, log, "the reading of the nodes' use")
        self._uses = None
        if settings.read_all_pods:
            active = {"fieldSelector": "status.phase!=Succeeded,status.phase!=Failed"}
            self._uses = self._reflect("/api/v1/pods", self._read_use, self._on_use, active)
        reflectors: list[Reflector[Any]] = [
            nodes,
            *self._pods.values(),
            *([self._uses] if self._uses else []),
        ]
        listed = [asyncio.ensure_future(reflector.listed.wait()) for reflector in reflectors]
        failed = asyncio.ensure_future(self._fail())
        try:
            waiting = asyncio.ensure_future(asyncio.wait(listed))
            await asyncio.wait([waiting, failed], timeout=_JOIN_S, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                failed.result()
            if not waiting.done():
                raise BackendUnavailable(
                    f"Kubernetes at {self._api.server} does not list its nodes and pods in time"
                )
        finally:
            for task in (*listed, waiting, failed):
                task.cancel()
        await self._open_reports()
        note = "" if settings.read_all_pods else ", other people's pods not counted"
        return self._api.server + note

    async def close(self) -> None:
        await self._stop()
        await self._reports.close()
        self._api.close()

    async def nodes(self) -> Sequence[Node]:
        return self._book.nodes()

    def check_request(self, request: Request) -> None:
        """Raise `ConfigError` for options and amounts that this cluster or its operator does not allow."""
        self._template.check(request)

    async def check_pod(self, request: Request) -> None:
        """Raise `ConfigError` if this cluster or its operator would not take a pod of such a request."""
        self.check_request(request)
        await self._creator.read_user()
        await self._creator.check_template(request)

    async def create(self, lease: Lease, launch: Launch | None = None) -> Pod:
        raw = await self._creator.create(lease, launch)
        self._reported.add(uid := raw["metadata"]["uid"])
        self._on_pod(uid, raw, raw)  # the watch may show no further change; the events say why it waits
        pod = self._view(raw)
        assert pod is not None
        return pod

    async def delete(self, lease_id: str) -> None:
        for raw in await self._list(f"{LEASE_LABEL}={digest(lease_id)}"):
            if not is_ending(raw) and self._creator.is_ours(raw):
                await self._creator.delete(raw)
        # From now on the resources of the pod count as those of an ending pod.
        for uid, raw in self._watched(lease_id):
            self._reported.discard(uid)
            raw["metadata"].setdefault("deletionTimestamp", "")
            self._count_ending(uid, raw)

    async def pods(self) -> Sequence[Pod]:
        found: list[Pod] = []
        creating, reported = set(self.creating), set(self._reported)
        for listed in await self._list():
            uid = listed["metadata"]["uid"]
            raw = latest(listed, self._raw(uid))  # the watch may have seen more by now
            is_released = RELEASED_ANNOTATION in raw["metadata"].get("annotations", {})
            is_shown = uid in self._reported or (self._is_new and not is_released) or not is_ending(raw)
            pod = self._view(raw) if is_shown and uid not in reported - self._reported else None
            if pod is not None and pod.lease.id not in creating | set(self.creating):
                found.append(pod)
        self._is_new = False
        return sorted(found, key=lambda pod: pod.lease.state != "lost")  # the last one of a lease counts

    async def explain_end(self, lease_id: str) -> str:
        _, raw = next(iter(self._watched(lease_id)), ("", None))
        return await explain_end(self._api, raw) if raw else DELETED

    async def changes(self) -> AsyncIterator[PodChange]:
        yield PodChange(kind="resync")
        while True:
            change = await self._changes.get()
            if isinstance(change, Exception):
                raise change
            yield change

    # Changes

    def _reflect(
        self, path: str, read: Any, on_change: Any, query: Mapping[str, str] | None = None
    ) -> Reflector[Any]:
        reflector: Reflector[Any] = Reflector(
            self._api, path, read, on_change, query=query, timeout_s=self._settings.watch_timeout_s
        )

        async def run() -> None:
            try:
                await reflector.run()
            except (BackendUnavailable, ApiError) as problem:
                text = problem.message if isinstance(problem, ApiError) else str(problem)
                self._changes.put_nowait(BackendUnavailable(text))
            except Exception as problem:
                log.exception("%s cannot be read", path)
                self._changes.put_nowait(BackendUnavailable(f"{path} cannot be read ({problem})"))

        spawn(run(), self._tasks, log)
        return reflector

    async def _open_reports(self) -> None:
        """Open the port where agents report their addresses, unless it is open or switched off."""
        address = self._settings.report_address
        if self._reports.endpoint or not address:
            return
        if address == "auto":
            try:
                address = await in_thread(self._api.find_own_address, deadline_s=_OWN_ADDRESS_S)
            except (OSError, asyncio.TimeoutError) as problem:
                log.info("agents cannot report their addresses: %s", str(problem) or "no answer in time")
                return
            if ip_address(address).is_loopback:  # of a proxy
                return
        await self._reports.open(self._key_pair, address, self._settings.report_port)

    def _on_report(self, lease_id: str) -> None:
        for uid, raw in self._watched(lease_id):
            self._on_pod(uid, raw, raw)

    async def _fail(self) -> NoReturn:
        """Wait for the first failure of a reflector and raise it."""
        while True:
            change = await self._changes.get()
            if isinstance(change, Exception):
                raise change

    async def _stop(self) -> None:
        await cancel_all(self._tasks)
        self._timers.close()
        self._creator.give_up()
        self._changes = asyncio.Queue()

    async def _list(self, *selectors: str) -> list[JsonObject]:
        """Ask Kubernetes for the pods of this service that fit the selectors."""
        selector = ",".join([f"{SERVICE_LABEL}={self._key_pair.label}", *selectors])
        answers = [await self._api.demand("GET", path, labelSelector=selector) for path in self._pod_paths()]
        return [raw for answer in answers for raw in answer["items"]]

    def _pod_paths(self) -> list[str]:
        """Return the API's lists in which pods of this service can be: with a pattern, that of all namespaces."""
        allowed = self._settings.allowed_namespaces
        if any(is_pattern(name) for name in allowed):
            return ["/api/v1/pods"]
        main = self._settings.namespace or self._api.namespace
        return [f"/api/v1/namespaces/{name}/pods" for name in dict.fromkeys([main, *allowed])]

    def _on_node(self, uid: str, before: Node | None, after: Node | None) -> None:
        if before != after:
            self._book.set_node(before, after)
            self._report_nodes()

    def _on_use(self, uid: str, before: PodUse | None, after: PodUse | None) -> None:
        if before == after:
            return
        for use, sign in ((before, -1), (after, 1)):
            if use is not None and not use.is_ours:
                self._book.add(use, sign)
                self._report_nodes()

    def _on_metrics(self, uses: Mapping[str, Use]) -> None:
        self._book.set_uses(uses)
        self._report_nodes()

    def _report_nodes(self) -> None:
        if "nodes" not in self._timers:
            self._timers.later(
                _NODES_AFTER_S, lambda: self._changes.put_nowait(PodChange(kind="nodes")), key="nodes"
            )

    def _on_pod(self, uid: str, before: JsonObject | None, after: JsonObject | None) -> None:
        self._count_ending(uid, after)
        if before is not None and after is None:
            self._reports.forget(agent_key(before))
        if self._creator.note_change(uid):
            return  # `create` reports it
        shown = read_lease(after or before or {})
        if uid not in self._reported and shown is not None and shown.id in self.creating:
            return  # `create` reports or deletes it
        if after is None or not is_waiting(after):
            self._news.pop(uid, None)
            self._timers.cancel(("events", uid))
        elif ("events", uid) not in self._timers:
            self._timers.later(
                _EVENTS_AFTER_S, lambda: spawn(self._read_events(uid), self._tasks, log), key=("events", uid)
            )
        if after is None:
            self._report_nodes()
            lease = read_lease(before) if before else None
            if lease is not None and uid in self._reported:
                self._reported.discard(uid)
                self._changes.put_nowait(PodChange(kind="gone", lease_id=lease.id, reason=DELETED))
            return
        if is_ending(after):
            self._report_nodes()
            if uid not in self._reported:
                return
        pod = self._view(after)
        if pod is not None:
            if pod.lease.state != "lost":
                self._reported.add(uid)
            self._changes.put_nowait(PodChange(kind="pod", pod=pod))

    def _view(self, raw: JsonObject) -> Pod | None:
        if not self._creator.is_ours(raw):
            return None
        uid = raw["metadata"]["uid"]
        pod = read_pod(raw, self._key_pair, self._news.get(uid))
        if pod is not None and is_gated(raw) and uid not in self._reported:
            reason = "the service that created its pod ended meanwhile"
            return replace(pod, lease=replace(pod.lease, state="lost", reason=reason))
        if pod is None or pod.lease.state == "lost":
            return pod
        return replace(pod, address=pod.address or self._reports.read(agent_key(raw)))

    async def _read_events(self, uid: str) -> None:
        """Read the events of a waiting pod, and report the reason that they give."""
        raw = self._raw(uid)
        if raw is None or not is_waiting(raw):
            return
        try:
            path = f"/api/v1/namespaces/{raw['metadata']['namespace']}/events"
            answer = await self._api.call("GET", path, fieldSelector=f"involvedObject.uid={uid}", limit=100)
        except (ApiError, BackendUnavailable) as problem:
            log.debug("the events of a pod cannot be read: %s", problem)
            return
        news, raw = read_events(answer["items"]), self._raw(uid)
        if raw is None or not is_waiting(raw):
            return
        if news is None:
            self._news.pop(uid, None)
        else:
            self._news[uid] = news
        self._on_pod(uid, raw, raw)

    def _raw(self, uid: str) -> JsonObject | None:
        return next((pods.items[uid] for pods in self._pods.values() if uid in pods.items), None)

    def _watched(self, lease_id: str) -> list[tuple[str, JsonObject]]:
        """Return uid and pod of each pod of this lease that the watches know."""
        known = [item for pods in self._pods.values() for item in pods.items.items()]
        return [
            (uid, raw) for uid, raw in known if raw["metadata"]["labels"].get(LEASE_LABEL) == digest(lease_id)
        ]

    def _count_ending(self, uid: str, raw: JsonObject | None) -> None:
        """Count the resources of a pod that is being deleted, because it keeps them until it is gone."""
        if (use := self._ending.pop(uid, None)) is not None:
            self._book.add(use, -1)
        if raw is not None and is_ending(raw) and (use := self._read_use(raw)) is not None:
            self._ending[uid] = use
            self._book.add(use)

    def _read_use(self, raw: JsonObject) -> PodUse | None:
        labels = raw["metadata"].get("labels", {})
        is_ours = labels.get(SERVICE_LABEL) == self._key_pair.label and self._creator.is_ours(raw)
        return read_use(raw, self._settings.gpu_resource, is_ours)
