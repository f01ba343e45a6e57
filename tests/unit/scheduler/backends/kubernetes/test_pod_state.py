"""Pods as the API shows them, and what users read about them."""

from __future__ import annotations

from typing import Any

import pytest

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import dump_lease
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.backends.kubernetes.pod_state import describe_refusal, read_events, read_pod, simplify
from roost.scheduler.backends.kubernetes.quota import describe_quota

KEY_PAIR = KeyPair("public", "secret")
LEASE = Lease(id="roost:k:1", kernel_id="k", owner=Owner(user="ada"), request=Request(cpus=1))


def pod(state: dict[str, Any] | None = None, *, node: str = "n1", **more: Any) -> dict[str, Any]:
    """Return a pod on `node` whose container has this state. `more` has fields of its status, or `metadata`."""
    metadata = more.pop("metadata", {})
    statuses = [{"name": "kernel", "state": state}] if state is not None else []
    annotations = {
        "roost/lease": dump_lease(LEASE),
        "roost/agent-key": "agent",
        "roost/agent-port": "8870",
    }
    return {
        "metadata": {"uid": "u", "annotations": annotations, **metadata},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": "Pending", "containerStatuses": statuses, **more},
    }


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def ended(reason: str = "Error", **more: Any) -> dict[str, Any]:
    return {"terminated": {"reason": reason, "exitCode": 1, **more}}


def disrupted(reason: str) -> list[dict[str, str]]:
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason}]


def test_a_running_pod_is_held_at_its_address() -> None:
    found = read_pod(pod({"running": {}}, podIP="10.0.0.7"), KEY_PAIR)
    assert found is not None
    assert (found.lease.state, found.lease.node_id, found.lease.reason) == ("held", "n1", "")
    assert found.address is not None
    assert (found.address.endpoint, found.address.keys.server) == ("tcp://10.0.0.7:8870", "agent")


def test_the_agent_may_be_asked_before_kubernetes_reports_that_it_runs() -> None:
    found = read_pod(pod(waiting("ContainerCreating"), podIP="fd00::7"), KEY_PAIR)
    assert found is not None
    assert found.lease.state == "pending"
    assert found.address is not None
    assert found.address.endpoint == "tcp://[fd00::7]:8870"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (None, "its container is being prepared"),
        (waiting("ContainerCreating"), "its container is being prepared"),
        (waiting(""), "its container is being prepared"),
        (
            waiting(
                "ImagePullBackOff", "rpc error: code = Unknown desc = dial tcp 10.1.1.1:443: i/o timeout"
            ),
            "its image cannot be pulled yet (dial tcp 10.1.1.1:443: i/o timeout)",
        ),
    ],
)
def test_a_pod_that_waits_says_for_what(state: dict[str, Any] | None, reason: str) -> None:
    found = read_pod(pod(state), KEY_PAIR)
    assert found is not None
    assert (found.lease.state, found.lease.reason) == ("pending", reason)


def test_an_image_without_ipykernel_says_what_to_install() -> None:
    raw = pod(ended(message="Traceback:\nModuleNotFoundError: No module named 'zmq'\n"), phase="Failed")
    raw["metadata"].setdefault("annotations", pod()["metadata"]["annotations"])
    found = read_pod(raw, KEY_PAIR)
    assert found is not None
    assert found.lease.is_final, "another node has the same image"
    assert found.lease.reason == (
        "the Python of its image cannot run roost's agent (No module named 'zmq'): install ipykernel into it, "
        "or set the option python to a Python that has ipykernel"
    )


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (pod(ended("OOMKilled")), "its container ran out of memory"),
        (pod(ended(), phase="Failed"), "its agent ended with exit code 1"),
        (
            pod(ended(), conditions=disrupted("PreemptionByScheduler")),
            "a pod of higher priority took its place",
        ),
        (
            pod(ended(), conditions=disrupted("EvictionByEvictionAPI")),
            "it was evicted, for example because its node is drained",
        ),
        (
            pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory. "),
            "its node evicted it: The node was low on resource: memory",
        ),
        (pod(phase="Failed", reason="OutOfcpu"), "its node refused it (OutOfcpu)"),
        (pod({"running": {}}, metadata={"uid": "u", "deletionTimestamp": "now"}), "its pod was deleted"),
    ],
)
def test_a_pod_that_has_ended_says_why(raw: dict[str, Any], reason: str) -> None:
    raw["metadata"].setdefault("annotations", pod()["metadata"]["annotations"])
    found = read_pod(raw, KEY_PAIR)
    assert found is not None
    assert (found.lease.state, found.lease.reason, found.lease.is_final) == ("lost", reason, False)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (waiting("InvalidImageName", 'couldn\'t parse image name "A B"'), "its image cannot be used"),
        (waiting("ErrImagePull", "desc = failed to resolve: a/b:1: not found"), "a/b:1: not found"),
        (waiting("ImagePullBackOff", "desc = pull access denied, repository"), "pull access denied"),
        (waiting("CreateContainerConfigError", 'secret "mine" not found'), 'secret "mine" not found'),
        (ended("StartError", message='desc = exec: "python9": not found'), 'exec: "python9": not found'),
    ],
)
def test_a_pod_that_can_never_start_ends_its_start(state: dict[str, Any], reason: str) -> None:
    found = read_pod(pod(state), KEY_PAIR)
    assert found is not None
    assert (found.lease.state, found.lease.is_final) == ("lost", True)
    assert reason in found.lease.reason


@pytest.mark.parametrize(
    ("events", "reason", "is_final"),
    [
        ([("1", "Scheduled", ""), ("2", "Pulling", 'Pulling image "a"')], "its image is being pulled", False),
        (
            [("1", "FailedMount", 'MountVolume.SetUp failed for volume "v" : secret "mine" not found')],
            'a volume of it is not ready: secret "mine" not found',
            True,
        ),
        (
            [("1", "FailedMount", 'MountVolume.SetUp failed for volume "v" : mount timed out')],
            "a volume of it is not ready: mount timed out",
            False,
        ),
    ],
)
def test_events_say_more_than_a_waiting_pod(
    events: list[tuple[str, str, str]], reason: str, is_final: bool
) -> None:
    news = read_events([{"lastTimestamp": at, "reason": why, "message": text} for at, why, text in events])
    found = read_pod(pod(waiting("ContainerCreating")), KEY_PAIR, news)
    assert found is not None
    assert (found.lease.reason, found.lease.is_final) == (reason, is_final)


def test_the_latest_event_counts_and_others_say_nothing() -> None:
    assert read_events([]) is None
    events = [("2", "Pulled"), ("1", "Pulling")]
    assert read_events([{"lastTimestamp": at, "reason": why} for at, why in events]) is None


def test_a_refusal_names_what_is_missing_on_the_chosen_node() -> None:
    message = (
        "0/3 nodes are available: 1 Insufficient nvidia.com/gpu, 1 node(s) had untolerated taint {a: b}, "
        "2 node(s) didn't match Pod's node affinity/selector. preemption: 0/3 nodes are available: 3 No victims."
    )
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
    }
    expected = "not enough nvidia.com/gpu, had untolerated taint {a: b}"
    assert describe_refusal(pod(node="", conditions=[condition])) == expected
    assert describe_refusal(pod(node="")) == ""
    assert simplify('persistentvolumeclaim "data" not found') == 'persistentvolumeclaim "data" not found'


def test_a_quota_that_can_never_be_met_is_final() -> None:
    message = (
        'pods "k" is forbidden: exceeded quota: team, requested: requests.cpu=3,requests.nvidia.com/gpu=1, '
        "used: requests.cpu=2,requests.nvidia.com/gpu=1, limited: requests.cpu={},requests.nvidia.com/gpu=1"
    )
    text, is_final = describe_quota(message.format("4"), "lab")
    assert not is_final
    assert "requests.cpu 2 of 4 used, 3 requested" in text
    assert describe_quota(message.format("2"), "lab")[1]
    assert describe_quota("exceeded quota", "lab") == ("the quota of the namespace lab is used up", False)


def test_a_pod_of_somebody_else_is_left_alone() -> None:
    assert read_pod({"metadata": {"annotations": {}}, "spec": {}}, KEY_PAIR) is None
    assert read_pod({"metadata": {"annotations": {"roost/lease": "{"}}, "spec": {}}, KEY_PAIR) is None
