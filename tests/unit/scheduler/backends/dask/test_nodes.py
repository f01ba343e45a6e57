"""roost's nodes, built from the descriptions that roost's plugin in Dask's scheduler sends."""

from __future__ import annotations

from typing import Any

import zmq

from roost.launchers.protocol.rpc import ClientKeys
from roost.placement import Device, Node
from roost.placement.model.json_codec import encode
from roost.scheduler.backends.dask.nodes import DaskNode, build_node
from roost.scheduler.backends.key_pair import KeyPair

PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())
SERVICE = KeyPair(PUBLIC, SECRET)
A100 = Device(id="GPU-a", model="A100", memory_bytes=80, used=0.5, memory_used_bytes=40)
OTHER = Device(id="GPU-b", model="A100", memory_bytes=80)


def describe(**changes: Any) -> dict[str, Any]:
    """Return a description of a machine with two GPUs: a kernel has half of one, and a task has the other."""
    return {
        "threads": 4,
        "memory_bytes": 1000,
        "resources": {"GPU": 2.0, "licence": 2.0},
        "free": {"GPU": 0.5, "licence": 2.0},
        "devices": ["0", "1"],
        "shares": {"0": 0.5},
        "cpus_promised": 1.5,
        "memory_promised_bytes": 100,
        "leases": ["a"],
        "is_draining": False,
        "agent": {},
        **changes,
    }


def test_leases_and_tasks_are_promised() -> None:
    node = build_node(DaskNode.of("10.0.0.1", describe(), SERVICE), None, None)
    assert (node.id, node.address, node.cpus, node.memory_bytes) == ("10.0.0.1", "10.0.0.1", 4, 1000)
    assert [(device.id, device.promised) for device in node.devices] == [("0", 0.5), ("1", 0.0)]
    assert node.gpus_promised == 1.5
    assert (node.resources, node.resources_promised) == ({"licence": 2.0}, {"licence": 0.0})
    assert (node.cpus_promised, node.memory_promised_bytes, node.kernels) == (1.5, 100, 1)
    assert (node.cpus_used, node.memory_used_bytes, node.metrics_age_s) == (None, None, None)
    assert not node.is_draining


def test_a_machine_that_is_retired_drains() -> None:
    node = build_node(DaskNode.of("m", describe(is_draining=True), SERVICE), None, None)
    assert node.is_draining
    assert node.drains_because == "Dask is retiring its workers"


def test_real_use_comes_from_the_agent_or_else_from_the_workers() -> None:
    machine = DaskNode.of("m", describe(), SERVICE)
    by_workers = build_node(machine, None, {"cpus": 0.5, "memory_bytes": 200})
    assert (by_workers.cpus_used, by_workers.memory_used_bytes, by_workers.metrics_age_s) == (0.5, 200, 0.0)
    status = Node(
        id="h",
        cpus=8,
        memory_bytes=2000,
        cpus_used=3.0,
        memory_used_bytes=700,
        devices=(A100, OTHER),
        metrics_age_s=2.0,
    )
    by_agent = build_node(machine, status, {"cpus": 0.5, "memory_bytes": 200})
    assert (by_agent.cpus_used, by_agent.memory_used_bytes, by_agent.metrics_age_s) == (3.0, 700, 2.0)
    first, second = by_agent.devices  # Dask numbers what the agent has other names for
    assert (first.id, first.model, first.used, first.memory_used_bytes) == ("0", "A100", 0.5, 40)
    assert (second.id, second.used) == ("1", None)


def test_a_device_is_found_by_its_id_if_the_worker_reports_ids() -> None:
    agent = {"report": "x", "devices": [encode(A100), encode(OTHER)]}
    machine = DaskNode.of("m", describe(devices=["GPU-b", "7"], agent=agent), SERVICE)
    assert (machine.daemon, machine.started_agent) == ("x", None)
    named, numbered = build_node(machine, None, None).devices
    assert (named.id, named.model, named.used) == ("GPU-b", "A100", None)
    assert (numbered.id, numbered.model) == ("7", "")


def test_an_agent_is_used_once_it_accepts_the_service() -> None:
    agent = {"report": "x", "endpoint": "tcp://10.0.0.1:1", "public": "server", "clients": ["another"]}
    assert DaskNode.of("m", describe(agent=agent), SERVICE).started_agent is None
    admitted = {**agent, "clients": ["another", SERVICE.public]}
    found = DaskNode.of("m", describe(agent=admitted), SERVICE).started_agent
    assert found is not None
    assert (found.daemon, found.address.endpoint) == ("x", "tcp://10.0.0.1:1")
    assert found.address.keys == ClientKeys(server="server", public=SERVICE.public, secret=SERVICE.secret)
