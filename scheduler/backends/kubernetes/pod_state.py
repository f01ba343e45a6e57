"""Finds the state of a lease, with one plain reason, in its pod as the API shows it. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from roost.launchers.protocol.messages import AgentAddress, Lease
from roost.launchers.protocol.shared_values import OUT_OF_MEMORY
from roost.scheduler.backends.agent_per_kernel import Pod, load_lease
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.backends.node_archive import advise_python, find_missing_module

from .api import JsonObject
from .names import CONTAINER, GATE, KEY_ANNOTATION, LEASE_ANNOTATION, PORT_ANNOTATION

_NEVER_FOUND = re.compile(
    r"not found|manifest unknown|does not exist|unauthorized|access denied|authentication required|forbidden"
    r"|invalid reference",
    re.IGNORECASE,
)
"""Errors of an image registry that a retry does not remove."""
_STEPS = re.compile(r'^(?:(?:failed to \w[^":]*|Head|Get)(?: ?"[^"]*")?: )+')
"""The steps at the head of an error chain, such as `failed to resolve reference "a:1": Head "https://...": `."""
DELETED = "its pod was deleted"
_DISRUPTIONS = {
    "PreemptionByScheduler": "a pod of higher priority took its place",
    "DeletionByTaintManager": "its node was tainted or did not answer",
    "EvictionByEvictionAPI": "it was evicted, for example because its node is drained",
    "DeletionByPodGC": "its node is gone",
    "TerminationByKubelet": "its node ended it",
}


def read_lease(pod: JsonObject) -> Lease | None:
    """Return the lease that a pod was made for; None if that cannot be read."""
    try:
        return load_lease(pod["metadata"]["annotations"][LEASE_ANNOTATION])
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class News:
    """The reason why a pod waits or has ended, as a clause, and whether a retry is useless."""

    reason: str
    is_final: bool = False


def read_events(events: Sequence[JsonObject]) -> News | None:
    """Return the news in a pod's latest event; None if there is no event, or if it gives no reason."""
    if not events:
        return None
    latest = max(events, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    message = str(latest.get("message", ""))
    match latest.get("reason", ""):
        case "Pulling":
            return News("its image is being pulled")
        case "FailedMount" | "FailedAttachVolume":
            is_final = re.search(r'(?:secret|configmap) "[^"]*" not found', message) is not None
            return News(f"a volume of it is not ready: {_last(message.rpartition(' : ')[2])}", is_final)
        case "FailedCreatePodSandBox":
            return News(f"its node cannot prepare it yet: {_last(message)}")
        case "TriggeredScaleUp":
            return News("the cluster adds a node for it")
        case "NotTriggerScaleUp":
            return News("no node has room, and the cluster adds none for it")
    return None


def read_pod(raw: JsonObject, key_pair: KeyPair, news: News | None = None) -> Pod | None:
    """Return the pod with the state of its lease; None for a pod that is not roost's."""
    lease = read_lease(raw)
    if lease is None:
        return None
    lease = replace(lease, node_id=raw["spec"].get("nodeName", ""))
    lost = describe_end(raw)
    if lost is None and news is not None and news.is_final:
        lost = news
    if lost is not None:
        return Pod(lease=replace(lease, state="lost", reason=lost.reason, is_final=lost.is_final))
    # The agent may listen a second before Kubernetes reports that its container runs.
    is_running = "running" in _container_state(raw)
    reason = news.reason if news is not None and not is_running else describe_wait(raw)
    lease = replace(lease, state="held" if is_running else "pending", reason=reason)
    return Pod(lease=lease, address=_read_address(raw, key_pair))


def latest(raw: JsonObject, other: JsonObject | None) -> JsonObject:
    """Return the later of two states of a pod. Resource versions are decimal numbers that grow."""
    if other is None:
        return raw
    version, other_version = (each["metadata"]["resourceVersion"] for each in (raw, other))
    return other if (len(other_version), other_version) > (len(version), version) else raw


def is_waiting(raw: JsonObject) -> bool:
    """True if the pod waits, and its events may say for what."""
    return (
        not is_gated(raw)
        and not is_ending(raw)
        and not _container_state(raw).keys() & {"running", "terminated"}
    )


def is_gated(raw: JsonObject) -> bool:
    """True if the pod still waits for its Secret."""
    return any(gate["name"] == GATE for gate in raw["spec"].get("schedulingGates", ()))


def is_ending(raw: JsonObject) -> bool:
    """True if the pod is being deleted."""
    return "deletionTimestamp" in raw["metadata"]


def is_bound(raw: JsonObject) -> bool:
    """True if the scheduler has chosen the pod's node."""
    return bool(raw["spec"].get("nodeName"))


def describe_refusal(raw: JsonObject) -> str:
    """Return why Kubernetes' scheduler refuses the pod for now; empty if it does not."""
    condition = _condition(raw, "PodScheduled")
    if condition.get("status") != "False" or condition.get("reason") != "Unschedulable":
        return ""
    return simplify(condition.get("message", ""))


def simplify(message: str) -> str:
    """Return the scheduler's message without numbers, and without the nodes that the pod's affinity excludes.

    >>> simplify("0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector. "
    ...          "preemption: 0/3 nodes are available: 3 Preemption is not helpful for scheduling.")
    'not enough cpu'
    """
    found = re.match(r"\d+/\d+ nodes are available: (.*?)\.(?: |$)", message)
    parts = re.split(r", (?=\d+ )", found.group(1)) if found else [message]
    texts = []
    for part in parts:
        text = re.sub(r"^\d+ (?:node\(s\) )?", "", part)
        if "didn't match Pod's node affinity" in text or "didn't satisfy plugin" in text:
            continue
        texts.append(re.sub(r"^(?:Insufficient|Too many) (\S+)", _enough, text))
    return ", ".join(texts) or "the chosen node is not there or does not match"


def describe_wait(raw: JsonObject) -> str:
    """Return why the pod does not run yet, in a clause; empty if its container runs."""
    if is_gated(raw):
        return "its keys are being stored"
    if not is_bound(raw):
        refusal = describe_refusal(raw)
        return f"no node has room yet: {refusal}" if refusal else "Kubernetes chooses its node"
    waiting = _container_state(raw).get("waiting")
    if waiting is None:
        return "" if _container_state(raw) else "its container is being prepared"
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    if reason in ("ErrImagePull", "ImagePullBackOff"):
        return f"its image cannot be pulled yet ({_last(message)})"
    if reason in ("", "ContainerCreating", "PodInitializing"):  # empty after its node was restarted
        return "its container is being prepared"
    return f"its container does not start ({reason}: {_last(message)})"


def describe_end(raw: JsonObject) -> News | None:
    """Return why the pod has ended or can never start, and whether a retry is useless; None if it goes on."""
    status = raw.get("status", {})
    disruption = _condition(raw, "DisruptionTarget")
    cause = _DISRUPTIONS.get(disruption.get("reason", ""), "") if disruption.get("status") == "True" else ""
    state = _container_state(raw)
    if (ended := state.get("terminated")) is not None:
        if ended.get("reason") == "OOMKilled":
            return News(OUT_OF_MEMORY)
        if ended.get("reason") in ("Unknown", "ContainerStatusUnknown"):
            return News(cause or "its node has lost it, for example because the node was restarted")
        if ended.get("reason") in ("StartError", "ContainerCannotRun"):
            return News(f"its container cannot start: {_last(ended.get('message', ''))}", is_final=True)
        if is_ending(raw) and ended.get("exitCode") == 0:  # the agent heeds SIGTERM
            return News(cause or DELETED)
        return _describe_failure(ended) if not cause else News(cause)
    if status.get("phase") in ("Failed", "Succeeded"):
        if status.get("reason") == "Evicted":
            return News(f"its node evicted it: {status.get('message', '')}".rstrip(". "))
        if status.get("reason", "").startswith(("OutOf", "UnexpectedAdmission", "NodeAffinity")):
            return News(f"its node refused it ({status['reason']})")
        return News(cause or f"it ended ({status.get('reason') or status['phase']})")
    if is_ending(raw):
        return News(cause or DELETED)
    waiting = state.get("waiting", {})
    message = waiting.get("message", "")
    match waiting.get("reason", ""):
        case "InvalidImageName" | "ErrImageNeverPull":
            return News(f"its image cannot be used: {_last(message)}", is_final=True)
        case "ErrImagePull" | "ImagePullBackOff" if _NEVER_FOUND.search(message):
            return News(f"its image cannot be pulled: {_last(message)}", is_final=True)
        case "CreateContainerConfigError" | "CreateContainerError":
            return News(f"its container cannot be made: {_last(message)}", is_final=True)
    return None


def _describe_failure(ended: JsonObject) -> News:
    """Return why the agent has ended by itself, from the end of what the container has printed."""
    if missing := find_missing_module(str(ended.get("message", ""))):
        problem = f"the Python of its image cannot run roost's agent ({missing})"
        return News(f"{problem}: {advise_python(missing)}", is_final=True)
    return News(f"its agent ended with exit code {ended.get('exitCode')}")


def _read_address(raw: JsonObject, key_pair: KeyPair) -> AgentAddress | None:
    annotations = raw["metadata"]["annotations"]
    ip = raw.get("status", {}).get("podIP")
    if not ip or KEY_ANNOTATION not in annotations:
        return None
    host = f"[{ip}]" if ":" in ip else ip
    return AgentAddress(
        endpoint=f"tcp://{host}:{annotations[PORT_ANNOTATION]}",
        keys=key_pair.keys_for(annotations[KEY_ANNOTATION]),
    )


def _container_state(raw: JsonObject) -> Mapping[str, Any]:
    for container in raw.get("status", {}).get("containerStatuses", ()):
        if container["name"] == CONTAINER:
            return dict(container.get("state", {}))
    return {}


def _condition(raw: JsonObject, kind: str) -> Mapping[str, Any]:
    conditions = raw.get("status", {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind), {})


def _enough(found: re.Match[str]) -> str:
    return f"not enough {found.group(1)}"


def _last(message: str) -> str:
    """Return the end of an error chain, where the cause is."""
    cause = _STEPS.sub("", message.rpartition("desc = ")[2].strip()).rstrip(".") or "no reason given"
    return cause if len(cause) <= 200 else f"...{cause[-200:]}"
