"""`KubernetesCluster`: the pods of one service in a Kubernetes cluster, for `AgentPerKernelBackend`."""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import zmq

from roost.launchers.daemon.tasks import Timers, cancel_all, spawn, start_shared
from roost.launchers.protocol.messages import Assignment, Launch, Lease, Owner, Reserve
from roost.launchers.protocol.rpc import ServerKeys
from roost.placement import Node, Request
from roost.scheduler.backends.agent_per_kernel import Pod, PodChange, PodCluster, dump_lease
from roost.scheduler.errors import BackendUnavailable, ConfigError, LaunchError, LeaseConflict, NoNodeEver

from .api import MERGE, Api, ApiError, JsonObject
from .identity import load_identity
from .metrics import MetricsReader, Use
from .names import (
    CREATOR_ANNOTATION,
    GATE,
    KEY_ANNOTATION,
    LEASE_ANNOTATION,
    LEASE_LABEL,
    SERVICE_LABEL,
    SIGNATURE_ANNOTATION,
    digest,
    name_pod,
)
from .nodes import NodeBook, PodUse, read_node, read_use
from .pod_spec import GRACE_S, PodTemplate
from .pod_state import (
    News,
    describe_refusal,
    is_bound,
    is_ending,
    is_gated,
    is_waiting,
    read_events,
    read_lease,
    read_pod,
)
from .quota import describe_quota
from .settings import RoostKubernetesBackend
from .watch import Reflector

log = logging.getLogger(__name__)

_JOIN_S = 300.0
"""How long the first reading of the cluster may take. Each page has its own, shorter deadline."""
_DECIDED_S = 2.0
"""How long a claim waits for Kubernetes' scheduler. After that the lease is pending."""
_EVENTS_AFTER_S = 2.0
"""How long a pod waits before its events are read, again and again."""
_NODES_AFTER_S = 0.02
"""How long changes of nodes are collected before they are reported."""
_MAX_ATTEMPTS = 20
_QUOTA_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
"""The longest pauses between attempts to create a pod whose quota others change at the same moment."""
_LONGEST = 1000
"""At most this many characters of a refusal are reported. It may repeat a value of any length."""


class _SecretExists(Exception):
    """The Secret of an earlier pod with the same name is not removed yet."""


class KubernetesCluster(PodCluster):
    """Creates, deletes and watches the pods whose label names this service's key pair."""

    name = "Kubernetes"

    def __init__(self, settings: RoostKubernetesBackend) -> None:
        self._settings = settings
        self._template = PodTemplate(settings)
        self._identity = load_identity(settings.identity_file)
        self._api = Api(settings.address, settings.context)
        self._user = ""
        """The Kubernetes user of this service. Empty until the first join, and if Kubernetes does not tell it."""
        self._is_checked = False
        """True once the API server has accepted a pod of the operator's template."""
        self._changes: asyncio.Queue[PodChange | Exception] = asyncio.Queue()
        self._timers = Timers()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._uses: Reflector[PodUse | None] | None = None
        self._pods: dict[str, Reflector[JsonObject]] = {}
        self._book = NodeBook()
        self._ending: dict[str, PodUse] = {}
        """By uid: what roost's ending pods take, as the book has it."""
        self._decided: dict[str, asyncio.Event] = {}
        """By uid: set when a pod that is being created changes."""
        self._creating: dict[str, asyncio.Task[Pod]] = {}
        self._news: dict[str, News] = {}
        """What the events of waiting pods say, by uid."""
        self._is_new = True
        """True until the pods are read for the first time. Pods that end then belong to an earlier service."""
        self._reported: set[str] = set()
        """Uids of the pods that were reported as live."""

    async def join(self) -> str:
        await self._stop()
        await self._read_user()
        await self._check_template()
        settings = self._settings
        self._book, self._ending = NodeBook(), {}
        nodes = self._reflect(
            "/api/v1/nodes", lambda raw: read_node(raw, settings.gpu_resource), self._on_node
        )
        selector = {"labelSelector": f"{SERVICE_LABEL}={self._identity.label}"}
        self._pods = {
            namespace: self._reflect(
                f"/api/v1/namespaces/{namespace}/pods",
                lambda raw: raw if self._is_ours(raw) else None,
                self._on_pod,
                selector,
            )
            for namespace in self._namespaces()
        }
        metrics = MetricsReader(self._api, self._on_metrics)
        spawn(metrics.run(), self._tasks, log)
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
        note = "" if settings.read_all_pods else ", other people's pods not counted"
        return self._api.server + note

    async def close(self) -> None:
        await asyncio.gather(*self._creating.values(), return_exceptions=True)
        await self._stop()
        self._api.close()

    async def nodes(self) -> Sequence[Node]:
        # A pod that roost has deleted keeps its resources until it is gone.
        ending = {
            uid: use
            for pods in self._pods.values()
            for uid, raw in pods.items.items()
            if is_ending(raw) and (use := self._read_use(raw))
        }
        for uid in self._ending.keys() - ending.keys():
            self._book.add(self._ending[uid], -1)
        for uid in ending.keys() - self._ending.keys():
            self._book.add(ending[uid])
        self._ending = {uid: self._ending.get(uid, use) for uid, use in ending.items()}
        return self._book.nodes()

    def check_request(self, request: Request) -> None:
        """Raise `ConfigError` for what this cluster or its operator does not give."""
        self._template.check(request)

    async def create(self, lease: Lease, launch: Launch | None = None) -> Pod:
        task = self._creating.get(lease.id)
        if task is None:
            task = self._creating[lease.id] = start_shared(self._create(lease, launch))
            task.add_done_callback(lambda _: self._creating.pop(lease.id, None))
        return await asyncio.shield(task)  # a creation ends as a whole, so that `delete` finds what there is

    async def delete(self, lease_id: str) -> None:
        if (creating := self._creating.get(lease_id)) is not None:
            await asyncio.wait([creating])
        for namespace in self._namespaces():
            selector = f"{SERVICE_LABEL}={self._identity.label},{LEASE_LABEL}={digest(lease_id)}"
            found = await self._call("GET", f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)
            for raw in found["items"]:
                if not is_ending(raw) and self._is_ours(raw):
                    await self._delete_pod(raw)
        # From now on the resources of the pod count as those of an ending pod.
        for pods in self._pods.values():
            for uid, raw in pods.items.items():
                lease = read_lease(raw)
                if lease is not None and lease.id == lease_id:
                    self._reported.discard(uid)
                    raw["metadata"].setdefault("deletionTimestamp", "")

    async def update(self, lease: Lease) -> None:
        raw = self._find(lease.id)
        if raw is None:
            return
        stored = read_lease(raw)
        assert stored is not None
        text = dump_lease(replace(stored, owner=lease.owner))
        metadata = {
            **raw["metadata"],
            "annotations": {**raw["metadata"]["annotations"], LEASE_ANNOTATION: text},
        }
        annotations = {LEASE_ANNOTATION: text, SIGNATURE_ANNOTATION: self._sign(metadata)}
        await self._call("PATCH", _path(raw), {"metadata": {"annotations": annotations}}, content_type=MERGE)

    async def pods(self) -> Sequence[Pod]:
        found: list[Pod] = []
        selector = f"{SERVICE_LABEL}={self._identity.label}"
        for namespace in self._namespaces():
            answer = await self._call("GET", f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)
            for raw in answer["items"]:
                is_shown = not is_ending(raw) or raw["metadata"]["uid"] in self._reported or self._is_new
                if is_shown and (pod := self._view(raw)) is not None:
                    found.append(pod)
        self._is_new = False
        return sorted(found, key=lambda pod: pod.lease.state != "lost")  # the last one of a lease counts

    async def changes(self) -> AsyncIterator[PodChange]:
        yield PodChange(kind="resync")
        while True:
            change = await self._changes.get()
            if isinstance(change, Exception):
                raise change
            yield change

    # Creation

    async def _create(self, lease: Lease, launch: Launch | None) -> Pod:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        namespace = self._template.namespace_of(lease.request, self._api.namespace)
        assignment = Assignment(
            keys=ServerKeys(public=public, secret=secret, clients=frozenset([self._identity.public])),
            reserve=Reserve(lease=replace(lease, state="held"), is_granted=True),
            launch=launch,
        )
        for attempt in range(1, _MAX_ATTEMPTS):
            name = name_pod(self._user or lease.owner.user, lease.id, attempt)
            pod = self._build_pod(lease, name, public)
            try:
                raw = await self._post(f"/api/v1/namespaces/{namespace}/pods", pod)
            except ApiError as problem:
                if problem.reason != "AlreadyExists":
                    raise _explain_refusal(problem, namespace) from None
            else:
                try:
                    return await self._complete(raw, lease, assignment)
                except _SecretExists:
                    continue
            try:
                existing = await self._api.call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
            except ApiError as problem:
                if problem.status != 404:
                    raise BackendUnavailable(f"Kubernetes refuses roost: {problem.message}") from None
                continue  # it has just been removed
            view = self._view(existing)
            if view is not None and view.lease.state != "lost" and not is_gated(existing):
                return view
        raise LaunchError(f"{_MAX_ATTEMPTS} pods of this kernel are still being deleted: try again later.")

    async def _complete(self, raw: JsonObject, lease: Lease, assignment: Assignment) -> Pod:
        """Store the Secret of a new pod, and wait until Kubernetes' scheduler decides. An error deletes the pod."""
        uid = raw["metadata"]["uid"]
        self._decided[uid] = asyncio.Event()
        try:
            path = _path(raw)
            name, namespace = raw["metadata"]["name"], raw["metadata"]["namespace"]
            stored = self._template.build_secret(name, raw, assignment)
            try:
                await self._post(f"/api/v1/namespaces/{namespace}/secrets", stored)
            except ApiError as problem:
                if problem.reason == "AlreadyExists":
                    raise _SecretExists from None
                raise BackendUnavailable(f"Kubernetes refuses roost: {problem.message}") from None
            others = [gate for gate in raw["spec"]["schedulingGates"] if gate["name"] != GATE]
            raw = await self._call("PATCH", path, {"spec": {"schedulingGates": others}}, content_type=MERGE)
            raw = await self._await_decision(uid, raw)
            refusal = "" if is_bound(raw) or not lease.node_id else describe_refusal(raw)
            if "persistentvolumeclaim" in refusal and "not found" in refusal:
                raise LaunchError(f"Kubernetes cannot place the pod: {refusal}.")
            if refusal:
                raise LeaseConflict(f"{lease.node_id} is refused by Kubernetes: {refusal}")
        except BaseException:
            await asyncio.shield(self._delete_pod(raw))
            raise
        finally:
            del self._decided[uid]
        self._reported.add(uid)
        view = self._view(raw)
        assert view is not None
        return view

    def _build_pod(self, lease: Lease, name: str, agent_public: str) -> JsonObject:
        pod = self._template.build_pod(lease, name, self._identity.label, agent_public)
        annotations = pod["metadata"]["annotations"]
        annotations[SIGNATURE_ANNOTATION] = self._sign(pod["metadata"])
        if self._user:
            annotations[CREATOR_ANNOTATION] = self._user
        return pod

    def _sign(self, metadata: JsonObject) -> str:
        annotations = metadata["annotations"]
        return self._identity.sign(
            metadata["name"], annotations[LEASE_ANNOTATION], annotations[KEY_ANNOTATION]
        )

    def _is_ours(self, raw: JsonObject) -> bool:
        """True if this service made the pod. Others can copy its labels, but not its signature."""
        metadata = raw["metadata"]
        try:
            return hmac.compare_digest(metadata["annotations"][SIGNATURE_ANNOTATION], self._sign(metadata))
        except (KeyError, TypeError):
            return False

    async def _read_user(self) -> None:
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        try:
            review = await self._api.call("POST", path, {})
        except ApiError as problem:  # an older Kubernetes, or a cluster that took this right away
            log.info("Kubernetes does not name roost's user: %s", problem.message)
        else:
            self._user = review["status"]["userInfo"]["username"]

    async def _check_template(self) -> None:
        """Let the API server check a pod of the operator's template once. Raises `ConfigError`."""
        lease = Lease(id="", kernel_id="", owner=Owner(user="roost"), request=Request(), node_id="")
        namespace = self._template.namespace_of(lease.request, self._api.namespace)
        pod = self._build_pod(lease, name_pod(self._user, "", 1), self._identity.public)
        if self._is_checked or not pod["spec"]["containers"][0].get("image"):
            return
        try:
            path = f"/api/v1/namespaces/{namespace}/pods"
            await self._api.call("POST", path, pod, dryRun="All", fieldValidation="Strict")
        except ApiError as problem:
            if not _depends_on_request(problem):
                raise ConfigError(
                    f"no kernel could start with these c.RoostKubernetesBackend settings and pod template: "
                    f"{_explain_refusal(problem, namespace)}"
                ) from None
        self._is_checked = True

    async def _await_decision(self, uid: str, raw: JsonObject) -> JsonObject:
        """Wait until the scheduler has bound or refused the pod, for `_DECIDED_S` at most."""
        changed = self._decided[uid]
        self._timers.later(_DECIDED_S, changed.set, key=("decided", uid))
        is_late = False
        while not is_late:
            known = self._raw(uid) or raw
            if is_bound(known) or describe_refusal(known):
                self._timers.cancel(("decided", uid))
                return known
            changed.clear()
            await changed.wait()
            is_late = ("decided", uid) not in self._timers
        return raw

    async def _delete_pod(self, raw: JsonObject) -> None:
        options = {"gracePeriodSeconds": GRACE_S, "preconditions": {"uid": raw["metadata"]["uid"]}}
        try:
            await self._api.call("DELETE", _path(raw), options)
        except ApiError as problem:
            if problem.status not in (404, 409):  # 409: another pod has the name by now
                raise BackendUnavailable(f"Kubernetes does not delete a pod: {problem.message}") from None

    async def _post(self, path: str, body: JsonObject) -> JsonObject:
        """Create an object, again if the namespace's quota was changed at the same moment. Raises `ApiError`."""
        for pause_s in _QUOTA_PAUSES_S:
            try:
                return await self._api.call("POST", path, body)
            except ApiError as problem:
                if problem.reason != "Conflict":
                    raise
                await asyncio.sleep(random.uniform(0, pause_s))
        return await self._api.call("POST", path, body)

    async def _call(
        self, method: str, path: str, body: JsonObject | None = None, **options: Any
    ) -> JsonObject:
        """Call the API where a refusal means that roost lacks a right."""
        try:
            return await self._api.call(method, path, body, **options)
        except ApiError as problem:
            raise BackendUnavailable(f"Kubernetes refuses roost: {problem.message}") from None

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

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return reflector

    async def _fail(self) -> NoReturn:
        """Return never, but raise the first failure of a reflector."""
        while True:
            change = await self._changes.get()
            if isinstance(change, Exception):
                raise change

    async def _stop(self) -> None:
        await cancel_all(self._tasks)
        self._timers.close()
        for decided in self._decided.values():  # their timers are gone
            decided.set()
        self._changes = asyncio.Queue()

    def _namespaces(self) -> list[str]:
        main = self._settings.namespace or self._api.namespace
        return list(dict.fromkeys([main, *self._settings.allowed_namespaces]))

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
        if (waiting := self._decided.get(uid)) is not None:
            waiting.set()
            return  # `_create` reports it
        shown = read_lease(after or before or {})
        if uid not in self._reported and shown is not None and shown.id in self._creating:
            return  # `_create` reports or deletes it
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
                reason = "its pod was deleted"
                self._changes.put_nowait(PodChange(kind="gone", lease_id=lease.id, reason=reason))
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
        if not self._is_ours(raw):
            return None
        pod = read_pod(raw, self._identity, self._news.get(raw["metadata"]["uid"]))
        if pod is not None and is_gated(raw) and pod.lease.id not in self._creating:
            reason = "the service that created its pod ended meanwhile"
            return replace(pod, lease=replace(pod.lease, state="lost", reason=reason))
        return pod

    async def _read_events(self, uid: str) -> None:
        """Read what the events of a waiting pod say, and report it."""
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

    def _find(self, lease_id: str) -> JsonObject | None:
        for pods in self._pods.values():
            for raw in pods.items.values():
                if not is_ending(raw) and raw["metadata"]["labels"].get(LEASE_LABEL) == digest(lease_id):
                    return raw
        return None

    def _read_use(self, raw: JsonObject) -> PodUse | None:
        labels = raw["metadata"].get("labels", {})
        is_ours = labels.get(SERVICE_LABEL) == self._identity.label and self._is_ours(raw)
        return read_use(raw, self._settings.gpu_resource, is_ours)


def _path(raw: JsonObject) -> str:
    metadata = raw["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def _depends_on_request(problem: ApiError) -> bool:
    """True if another request may be accepted: quotas and limit ranges refuse amounts, and amounts that are missing."""
    return problem.status == 403 and re.search("quota|usage per", problem.message) is not None


def _explain_refusal(problem: ApiError, namespace: str) -> Exception:
    """Return the error for a pod that the API server does not take."""
    if problem.status == 403 and "exceeded quota" in problem.message:
        text, is_final = describe_quota(problem.message, namespace)
        return NoNodeEver(text) if is_final else LeaseConflict(text, is_everywhere=True)
    if problem.status == 404:
        return LaunchError(f"Kubernetes has no namespace {namespace}: create it, or name another one.")
    return LaunchError(
        f"Kubernetes refuses the pod: {' '.join(problem.message.split()).rstrip('.')[:_LONGEST]}."
    )
