"""A container as the engine shows it: whether it counts, where its agent is, and why it has ended."""

from __future__ import annotations

from typing import Any

import pytest

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Request
from roost.scheduler.backends.agent_per_kernel import dump_lease
from roost.scheduler.backends.docker.container_state import (
    OUT_OF_MEMORY,
    STARTS_S,
    STOPPED_OR_KILLED,
    build_lost,
    build_pod,
    describe_end,
    find_ip,
    holds_room,
    read_lease,
)
from roost.scheduler.backends.docker.names import KEY_LABEL, LEASE_LABEL
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.backends.node_archive import advise_python

LEASE = Lease(
    id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=Request(cpus=1), node_id="here"
)
PAIR = KeyPair("p" * 40, "s" * 40)
NOW = 1_000_000.0
NO_ZMQ = "No module named 'zmq'"


def listed(state: str, *, name: str = "roost-ada-1", age_s: float = 0.0) -> dict[str, Any]:
    return {"State": state, "Names": [f"/{name}"], "Created": int(NOW - age_s)}


@pytest.mark.parametrize(
    ("container", "counts"),
    [
        (listed("running"), True),
        (listed("paused"), True),
        (listed("created"), True),
        (listed("created", age_s=STARTS_S + 1), False),
        (listed("exited"), False),
        (listed("removing"), False),
        (listed("created", name="roost-claim"), False),
    ],
)
def test_a_container_counts_once_it_is_granted_and_until_it_ends(
    container: dict[str, Any], counts: bool
) -> None:
    assert holds_room(container, NOW) is counts


def test_labels_of_others_have_no_lease() -> None:
    assert read_lease({LEASE_LABEL: dump_lease(LEASE)}) == LEASE
    assert read_lease({}) is None
    assert read_lease({LEASE_LABEL: "{"}) is None


@pytest.mark.parametrize(
    ("ip", "endpoint"), [("172.17.0.2", "tcp://172.17.0.2:8870"), ("fd00::2", "tcp://[fd00::2]:8870")]
)
def test_the_agent_listens_at_the_containers_address(ip: str, endpoint: str) -> None:
    found = find_ip({"NetworkSettings": {"Networks": {"bridge": {"IPAddress": ip}}}})
    pod = build_pod(LEASE, {KEY_LABEL: "a" * 40}, found, PAIR, 8870)
    assert pod.address is not None
    assert (pod.address.endpoint, pod.address.keys.server) == (endpoint, "a" * 40)


def test_a_container_without_a_network_has_no_address() -> None:
    assert find_ip({"NetworkSettings": {"Networks": {"none": {"IPAddress": ""}}}}) == ""
    assert find_ip({}) == ""
    assert build_pod(LEASE, {KEY_LABEL: "a" * 40}, "", PAIR, 8870).address is None


@pytest.mark.parametrize(
    ("state", "printed", "reason", "is_final"),
    [
        ({"ExitCode": 137, "OOMKilled": True}, "", OUT_OF_MEMORY, False),
        # The memory ran out for a child. The agent has lived on and has ended as usual.
        ({"ExitCode": 0, "OOMKilled": True}, "", STOPPED_OR_KILLED, False),
        (
            {"ExitCode": 137},
            "",
            STOPPED_OR_KILLED,
            False,
        ),
        (
            {"ExitCode": 127, "Error": 'OCI runtime create failed: exec: "python3": not found.'},
            "",
            'its container cannot start: exec: "python3": not found',
            True,
        ),
        (
            {"ExitCode": 1},
            f"Traceback:\nModuleNotFoundError: {NO_ZMQ}\n",
            f"the Python of its image cannot run roost's agent ({NO_ZMQ}): {advise_python(NO_ZMQ)}",
            True,
        ),
        (
            {"ExitCode": 1},
            f'Traceback:\n  File "main.py", line 20, in <module>{NO_ZMQ}: ModuleNotFoundError\n',
            f"the Python of its image cannot run roost's agent ({NO_ZMQ}): {advise_python(NO_ZMQ)}",
            True,
        ),
        ({"ExitCode": 3}, "", "its agent ended with exit code 3", False),
    ],
)
def test_the_end_of_a_container_has_its_reason(
    state: dict[str, Any], printed: str, reason: str, is_final: bool
) -> None:
    lease = build_lost(LEASE, describe_end(state, printed)).lease
    assert (lease.state, lease.reason, lease.is_final) == ("lost", reason, is_final)
