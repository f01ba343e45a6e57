"""Kernels on a Ray cluster of three nodes, all on this machine: time to start, burst rate, and large clusters.

`on_cluster.py` describes the measurements. Here `first start` also begins without Ray workers. The first worker on a
node starts the agent, and also finds the kernel's device.

decode     Ray's report on 1,000 nodes → RayNodes, for every reading except the first. The report is copied from a
           recorded one, with two placement groups per node
build_node    changed RayNodes → roost's nodes

Claims (medians): start with a CPU or half a GPU ≤ 0.17 × plain, at once after another start ≤ 0.20 × plain; no node
promises more than it has; decode ≤ 10 ms. Without Ray the script prints a note and exits with 77.
"""

from __future__ import annotations

import os
import sys
import time

from on_cluster import LEASES_PER_NODE, NODES, MeasuredCluster, make_tables, run_cluster, time_calls


def measure_reading(rounds: int) -> dict[str, list[float]]:
    """Time the reading of Ray's report on NODES nodes, copied from this cluster's. Return milliseconds by stage."""
    import ray
    from ray._private.worker import global_worker
    from ray.core.generated import autoscaler_pb2
    from ray.util.placement_group import placement_group

    from roost.scheduler.backends.ray import nodes

    ray.init(address=os.environ["RAY_ADDRESS"], log_to_driver=False)
    bundles = [{"CPU": 0.1, f"node:{node['NodeManagerAddress']}": 0.001} for node in ray.nodes()]
    groups = [placement_group([bundle]) for bundle in bundles for _ in range(LEASES_PER_NODE)]
    for group in groups:
        group.wait(10)
    end = time.monotonic() + 10
    while True:  # until the nodes have reported the groups
        content = global_worker.gcs_client.get_cluster_resource_state(timeout_s=5)
        recorded = autoscaler_pb2.GetClusterResourceStateReply.FromString(
            content
        ).cluster_resource_state.node_states
        shown = [
            name for state in recorded for name in state.total_resources if name.startswith("bundle_group_0_")
        ]
        if len(shown) == len(groups) or time.monotonic() > end:
            break
    reply = autoscaler_pb2.GetClusterResourceStateReply()
    for number in range(NODES):
        state = reply.cluster_resource_state.node_states.add()
        state.CopyFrom(recorded[number % len(recorded)])
        state.node_id = number.to_bytes(28, "big")
        state.node_ip_address = f"10.0.{number // 250}.{number % 250}"
        state.labels["ray.io/node-id"] = state.node_id.hex()
    ray.shutdown()
    content = reply.SerializeToString()
    known = nodes.decode(content)
    assert len({node.id for node in known}) == NODES
    assert all(len(node.groups or ()) == LEASES_PER_NODE for node in known)
    return {
        "decode": time_calls(rounds, lambda: nodes.decode(content, known)),
        "first decode": time_calls(rounds, lambda: nodes.decode(content)),
        "build_node": time_calls(rounds, lambda: [nodes.build_node(node, None) for node in known]),
    }


RAY = MeasuredCluster(
    backend="ray",
    title="Ray",
    package="ray",
    script=__file__,
    read=measure_reading,
    read_bounds={"decode": 10.0},
)
STARTS, CLUSTER = make_tables(RAY, {"1,000 nodes read": "decode"})

if __name__ == "__main__":
    sys.exit(run_cluster(RAY, __doc__))
