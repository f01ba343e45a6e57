"""Tests of Ray's custom resources on a real cluster. A lease takes them from the node for itself alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from roost.launchers.protocol.messages import Lease, Owner
from roost.placement import Decision, Request, get_policy
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import Backend
from roost.scheduler.backends.ray import join, placement_groups
from roost.scheduler.backends.ray.manager import create
from roost.scheduler.backends.ray.settings import RoostRayBackend
from roost.scheduler.errors import LeaseConflict
from roost.testing import backend_context
from roost.testing.clusters.raylets import Raylets
from roost.testing.deadlines import allow_s, until

ADA = Owner(user="ada", application="test", host="here", pid=1, process_started_at=1.0, can_adopt=True)


@pytest.fixture
def joined_ray_cluster(ray_cluster: Raylets) -> Iterator[Raylets]:
    yield ray_cluster
    join.leave()


@pytest.fixture
async def backend(joined_ray_cluster: Raylets, tmp_path: Path) -> AsyncIterator[Backend]:
    agents = Agents()
    backend = create(RoostRayBackend(address=joined_ray_cluster.address), backend_context(agents, tmp_path))
    await backend.open()
    try:
        yield backend
    finally:
        for lease in (await backend.leases()).leases:
            await backend.release(lease)
        await backend.close()
        await agents.close()


async def decide(backend: Backend, **resources: float) -> Decision:
    return get_policy("balanced").place(Request(resources=resources), await backend.snapshot())


def list_demands() -> list[object]:
    """Return the tasks that wait in Ray."""
    from ray._private.worker import global_worker
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    status = GetClusterStatusReply.FromString(global_worker.gcs_client.get_cluster_status(timeout_s=30))
    return list(status.cluster_resource_state.pending_resource_requests)


async def take(backend: Backend, decision: Decision, name: str) -> Lease:
    assert decision.placement is not None
    return await backend.claim(
        Lease(
            id=f"roost:{name}:t/1",
            kernel_id=name,
            owner=ADA,
            request=decision.request,
            node_id=decision.placement.node_id,
            device_ids=decision.placement.device_ids,
        )
    )


async def test_amounts_are_promised_leased_and_released(
    joined_ray_cluster: Raylets, backend: Backend
) -> None:
    having = joined_ray_cluster.nodes[2].address
    nodes = await backend.snapshot()
    of_nodes = {node: nodes.node(node).resources for node in nodes.nodes}
    assert {node: amounts for node, amounts in of_nodes.items() if amounts} == {having: {"licence": 2.0}}

    decision, late = await decide(backend, licence=1.5), await decide(backend, licence=1)
    lease = await take(backend, decision, "k1")
    assert (lease.node_id, lease.request.resources) == (having, {"licence": 1.5})
    (group,) = placement_groups.read_groups()
    assert group.amounts["licence"] == 1.5

    async def is_held() -> bool:  # it is pending while its agent does not answer
        return (await backend.leases()).leases == (lease,)

    await until(is_held, "the lease is held", 30)
    assert (await backend.snapshot()).node(having).resources_promised == {"licence": 1.5}

    refused = await decide(backend, licence=1)
    assert refused.placement is None
    assert not refused.is_never
    assert "1 has too little of a resource free now" in refused.reason
    assert f"nearest {having}: needs 1 licence, 0.5 free" in refused.remedies[0]
    with pytest.raises(LeaseConflict, match=f"Ray has no room for it on {having} "):
        await take(backend, late, "k2")  # placed before the first was taken

    await backend.release(lease)
    events = backend.events()
    while (await backend.snapshot()).node(having).resource_free("licence") != 2.0:
        await asyncio.wait_for(anext(events), allow_s(60))  # Ray shows freed resources late
    await take(backend, await decide(backend, licence=2), "k3")


async def test_a_resource_that_no_node_has_is_never_granted(backend: Backend) -> None:
    decision = await decide(backend, tpu=4)
    assert decision.is_never
    assert (
        decision.reason == "no node could ever hold 4 tpu: 3 of 3 nodes have too little of a resource at all"
    )
    assert {refusal.reason for refusal in decision.refusals} == {"needs 4 tpu, has none"}


async def test_a_refused_or_cancelled_claim_leaves_no_task_in_ray(backend: Backend) -> None:
    """Ray would keep such a task as a demand, and its argument on the node, which is then never idle."""
    snapshot = await backend.snapshot()
    gpus = max(len(snapshot.node(node_id).devices) for node_id in snapshot.nodes)
    decision = get_policy("balanced").place(Request(gpus=gpus), snapshot)
    lease = await take(backend, decision, "k1")
    for name in ("k2", "k3"):
        with pytest.raises(LeaseConflict, match="Ray has no room for it"):
            await take(backend, decision, name)
    await backend.release(lease)
    for pause_s in (0.0, 0.01, 0.05):
        claim = asyncio.create_task(take(backend, decision, "k4"))
        await asyncio.sleep(pause_s)
        claim.cancel()
        await asyncio.wait([claim])
        await backend.release(replace(lease, id="roost:k4:t/1", kernel_id="k4"))
    assert placement_groups.read_groups() == []
    await asyncio.sleep(4)  # Ray reports its demands late
    await until(lambda: not list_demands(), lambda: f"no demand is left: {list_demands()}", 30, 0.5)
