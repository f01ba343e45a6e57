"""Creates the pods of leases: a pod with a scheduling gate, then its Secret.

When the Secret is stored, the gate is removed. Each pod is signed.

Nothing is orphaned if the service ends in between: the pod owns the Secret, and a pod with a gate uses nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
import re
from collections.abc import Callable
from dataclasses import replace

import zmq

from roost.launchers.daemon.tasks import Timers
from roost.launchers.protocol.messages import Assignment, Launch, Lease, Owner, Reserve
from roost.launchers.protocol.rpc import ServerKeys
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel.address_reports import AddressReports
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.errors import BackendUnavailable, ConfigError, LaunchError, LeaseConflict, NoNodeEver

from .api import MERGE, Api, ApiError, JsonObject
from .names import (
    CREATOR_ANNOTATION,
    GATE,
    KEY_ANNOTATION,
    LEASE_ANNOTATION,
    PORT_ANNOTATION,
    RELEASED_ANNOTATION,
    SIGNATURE_ANNOTATION,
    name_pod,
)
from .pod_spec import GRACE_S, PodTemplate
from .pod_state import DELETED, describe_refusal, is_bound, is_gated, read_pod
from .quota import describe_quota

log = logging.getLogger(__name__)

_DECIDED_S = 2.0
"""How long a claim waits for Kubernetes' scheduler. After that the lease is pending."""
_MAX_ATTEMPTS = 20
_QUOTA_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
"""The longest pauses between attempts to create a pod whose quota others change at the same moment."""
_LONGEST = 1000
"""At most this many characters of a refusal are reported. It may repeat a value of any length."""


class _SecretExists(Exception):
    """The Secret of an earlier pod with the same name is not removed yet."""


class PodCreator:
    """Creates, signs and deletes pods.

    `find` returns a watched pod by its uid.

    `reports` expects the agents of the pods that are created here, until they are deleted. `user` is the
    Kubernetes user of this service. It is empty before `read_user`, and if Kubernetes does not name it.
    """

    def __init__(
        self,
        api: Api,
        template: PodTemplate,
        key_pair: Callable[[], KeyPair],
        find: Callable[[str], JsonObject | None],
        reports: AddressReports,
    ) -> None:
        self._api = api
        self._template = template
        self._key_pair = key_pair
        self._find = find
        self._reports = reports
        self.user = ""
        self._is_checked = False
        """True once the API server has accepted a pod of the operator's template."""
        self._decided: dict[str, asyncio.Event] = {}
        """By uid: set when a pod that is being created changes."""
        self._timers = Timers()

    async def create(self, lease: Lease, launch: Launch | None) -> JsonObject:
        """Create the pod of a lease, or find it.

        Return it once Kubernetes' scheduler has decided, or after `_DECIDED_S`.
        """
        public, secret = (key.decode() for key in zmq.curve_keypair())
        namespace = self._template.namespace_of(lease.request, self._api.namespace)
        assignment = Assignment(
            keys=ServerKeys(public=public, secret=secret, clients=frozenset([self._key_pair().public])),
            reserve=Reserve(lease=replace(lease, state="held"), is_granted=True, launch=launch),
            report_to=self._reports.endpoint,
        )
        for attempt in range(1, _MAX_ATTEMPTS):
            name = name_pod(self.user or lease.owner.user, lease.id, attempt)
            pod = self._build_pod(lease, name, public)
            try:
                raw = await self._post(f"/api/v1/namespaces/{namespace}/pods", pod)
            except ApiError as problem:
                if problem.reason != "AlreadyExists":
                    raise _explain_refusal(problem, namespace) from None
                try:
                    raw = await self._api.call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
                except ApiError as unread:
                    if unread.status != 404:
                        raise BackendUnavailable(f"Kubernetes refuses roost: {unread.message}") from None
                    continue  # it has just been removed
            if (
                raw["metadata"].get("annotations", {}).get(KEY_ANNOTATION) == public
            ):  # else it is an earlier pod
                try:
                    return await self._complete(raw, lease, assignment)
                except _SecretExists:
                    continue
            view = read_pod(raw, self._key_pair()) if self.is_ours(raw) else None
            if view is not None and view.lease.state != "lost" and not is_gated(raw):
                return raw
        raise LaunchError(f"{_MAX_ATTEMPTS} pods of this kernel are still being deleted: try again later.")

    async def _complete(self, raw: JsonObject, lease: Lease, assignment: Assignment) -> JsonObject:
        """Store the Secret of a new pod, and wait until Kubernetes' scheduler decides. An error deletes the pod."""
        uid = raw["metadata"]["uid"]
        self._decided[uid] = asyncio.Event()
        port = int(raw["metadata"]["annotations"][PORT_ANNOTATION])
        self._reports.expect(assignment.keys.public, lease.id, [port])
        try:
            path = path_of(raw)
            name, namespace = raw["metadata"]["name"], raw["metadata"]["namespace"]
            stored = self._template.build_secret(name, raw, assignment)
            try:
                await self._post(f"/api/v1/namespaces/{namespace}/secrets", stored)
            except ApiError as problem:
                if problem.reason == "AlreadyExists":
                    raise _SecretExists from None
                raise BackendUnavailable(f"Kubernetes refuses roost: {problem.message}") from None
            others = [gate for gate in raw["spec"]["schedulingGates"] if gate["name"] != GATE]
            raw = await self._api.demand(
                "PATCH", path, {"spec": {"schedulingGates": others}}, content_type=MERGE
            )
            raw = await self._await_decision(uid, raw)
            refusal = "" if is_bound(raw) or not lease.node_id else describe_refusal(raw)
            if "persistentvolumeclaim" in refusal and "not found" in refusal:
                raise LaunchError(f"Kubernetes cannot place the pod: {refusal}.")
            if refusal:
                raise LeaseConflict(f"{lease.node_id} is refused by Kubernetes: {refusal}")
        except BaseException:
            await asyncio.shield(self.delete(raw))
            raise
        finally:
            del self._decided[uid]
        return raw

    def _build_pod(self, lease: Lease, name: str, agent_public: str) -> JsonObject:
        pod = self._template.build_pod(lease, name, self._key_pair().label, agent_public)
        metadata = pod["metadata"]
        # The API server refuses a template that names another one.
        metadata.setdefault("namespace", self._template.namespace_of(lease.request, self._api.namespace))
        annotations = metadata["annotations"]
        annotations[SIGNATURE_ANNOTATION] = self.sign(metadata)
        if self.user:
            annotations[CREATOR_ANNOTATION] = self.user
        return pod

    def sign(self, metadata: JsonObject) -> str:
        """Return the signature of a pod with this metadata."""
        annotations = metadata["annotations"]
        return self._key_pair().sign(
            metadata["namespace"],
            metadata["name"],
            annotations[LEASE_ANNOTATION],
            annotations[KEY_ANNOTATION],
        )

    def note_change(self, uid: str) -> bool:
        """Note that a pod has changed. Return False if it is not being created here."""
        changed = self._decided.get(uid)
        if changed is not None:
            changed.set()
        return changed is not None

    def give_up(self) -> None:
        """Let creations go on without Kubernetes' decision, because nobody follows the cluster now."""
        self._timers.close()
        for decided in self._decided.values():
            decided.set()

    def is_ours(self, raw: JsonObject) -> bool:
        """True if this service made the pod. Others can copy its labels, but not its signature."""
        metadata = raw["metadata"]
        try:
            return hmac.compare_digest(metadata["annotations"][SIGNATURE_ANNOTATION], self.sign(metadata))
        except (KeyError, TypeError):
            return False

    async def read_user(self) -> None:
        """Ask Kubernetes for the name of this service's user."""
        path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
        try:
            review = await self._api.call("POST", path, {})
        except ApiError as problem:  # an older Kubernetes, or a cluster that took this right away
            log.info("Kubernetes does not name roost's user: %s", problem.message)
        else:
            self.user = review["status"]["userInfo"]["username"]

    async def check_template(self, request: Request) -> None:
        """Let the API server check a pod of the operator's template once. Raises `ConfigError`."""
        lease = Lease(id="", kernel_id="", owner=Owner(user="roost"), request=request, node_id="")
        namespace = self._template.namespace_of(lease.request, self._api.namespace)
        pod = self._build_pod(lease, name_pod(self.user, "", 1), self._key_pair().public)
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
        is_late = is_shown = False
        while not is_late:
            shown = self._find(uid)
            if is_shown and shown is None:  # by hand
                raise LeaseConflict(DELETED)
            is_shown, known = shown is not None, shown or raw
            if is_bound(known) or describe_refusal(known):
                self._timers.cancel(("decided", uid))
                return known
            changed.clear()
            await changed.wait()
            is_late = ("decided", uid) not in self._timers
        return raw

    async def delete(self, raw: JsonObject) -> None:
        """Delete exactly this pod, and no later pod with its name. May be repeated."""
        self._reports.forget(agent_key(raw))
        options = {"gracePeriodSeconds": GRACE_S, "preconditions": {"uid": raw["metadata"]["uid"]}}
        released = {"metadata": {"annotations": {RELEASED_ANNOTATION: "true"}}}
        try:
            await self._api.call("PATCH", path_of(raw), released, content_type=MERGE)
            await self._api.call("DELETE", path_of(raw), options)
        except ApiError as problem:
            if problem.status not in (404, 409):  # 409: another pod has the name by now
                raise BackendUnavailable(f"Kubernetes does not delete a pod: {problem.message}") from None

    async def _post(self, path: str, body: JsonObject) -> JsonObject:
        """Create an object. Try again if the namespace's quota was changed at the same moment. Raises `ApiError`."""
        for pause_s in _QUOTA_PAUSES_S:
            try:
                return await self._api.call("POST", path, body)
            except ApiError as problem:
                if problem.reason != "Conflict":
                    raise
                await asyncio.sleep(random.uniform(0, pause_s))
        return await self._api.call("POST", path, body)


def path_of(raw: JsonObject) -> str:
    """Return the path of a pod in the API."""
    metadata = raw["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"


def agent_key(raw: JsonObject) -> str:
    """Return the public key of a pod's agent."""
    return str(raw["metadata"]["annotations"][KEY_ANNOTATION])


def _depends_on_request(problem: ApiError) -> bool:
    """True if a quota or limit range refuses an amount, or requires an amount that is missing.

    Another request may be accepted then.
    """
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
