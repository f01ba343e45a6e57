"""Kernels on a Dask cluster of three machines, all on this machine: time to start, burst rate, and large clusters.

`on_cluster.py` describes the measurements. The reading stages are for 1,000 machines with four GPUs and two leases
each, as reported in full to a service that joins:

read       all stages below together, without the network
answer     roost's plugin in Dask's scheduler builds its report. Dask's scheduler does nothing else meanwhile
pack       Dask packs the report (msgpack)
unpack     Dask unpacks it in roost's service
decode     → DaskNodes
build_node    → roost's nodes
change     `answer` after a change of one machine, such as a lease or a task. All later readings are like this

Claims (medians): start with a CPU or half a GPU ≤ 0.17 × plain, at once after another start ≤ 0.20 × plain; no node
promises more than it has; answer ≤ 15 ms; read ≤ 100 ms. Without Dask the script prints a note and exits with 77.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from on_cluster import LEASES_PER_NODE, NODES, MeasuredCluster, make_tables, run_cluster, time_calls

GPUS = 4
AGENT = {
    "endpoint": "tcp://10.0.0.1:40002",
    "public": "s" * 40,
    "clients": ["p" * 40],
    "devices": [],
    "environment": {"DASK_SCHEDULER_ADDRESS": "tcp://10.0.0.1:8786"},
    "report": "0" * 32,
}


async def fill_plugin() -> Any:
    """Return roost's plugin for Dask's scheduler with NODES machines and all their leases."""
    from roost.scheduler.backends.dask.plugin.scheduler_plugin import RoostSchedulerPlugin
    from roost.scheduler.backends.dask.plugin.slot_ledger import Slot, SlotLease

    plugin = RoostSchedulerPlugin("0", "")
    scheduler = SimpleNamespace(plugins={}, workers={}, handlers={})
    plugin.start(scheduler)
    for number in range(NODES):
        machine = f"10.0.{number // 250}.{number % 250}"
        slot = Slot(
            name=f"tcp://{machine}:40000",
            machine=machine,
            worker=f"tcp://{machine}:40001",
            nanny=f"tcp://{machine}:40000",
            threads=32,
            memory_bytes=256 << 30,
            resources={"GPU": float(GPUS)},
            free={"GPU": float(GPUS)},
            devices=[str(device) for device in range(GPUS)],
            is_ready=True,
        )
        plugin.ledger.slots[slot.name] = slot
        for index in range(LEASES_PER_NODE):
            held = SlotLease(
                lease_id=f"roost:{number:08}-{index}:scheduler-dask/launch",
                kernel_id=f"{number:08}-{index}",
                user="ada",
                machine=machine,
                cpus=1.0,
                memory_bytes=1 << 30,
                gpus=0.5,
                resources={},
            )
            plugin.ledger.take(held, preferred=[]).is_wish = False
        plugin.agents[machine] = AGENT
        plugin._mark_changed(machine)
    return plugin


def measure_reading(rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of each stage of a report on NODES machines to roost's service."""
    from distributed.protocol import dumps, loads

    from roost.scheduler.backends.dask import nodes
    from roost.scheduler.backends.dask.nodes import DaskNode
    from roost.scheduler.backends.key_pair import KeyPair

    loop = asyncio.new_event_loop()
    plugin = loop.run_until_complete(fill_plugin())
    key_pair = KeyPair("p" * 40, "k" * 40)

    def answer(since: int) -> dict[str, Any]:
        return loop.run_until_complete(plugin.nodes(since, plugin.incarnation, 0.0))

    def decode_all(machines: Mapping[str, Any]) -> list[DaskNode]:
        return [DaskNode.of(name, machine, key_pair) for name, machine in machines.items()]

    report = answer(-1)
    packed = dumps(report)
    decoded = decode_all(loads(packed)["machines"])
    assert len(decoded) == NODES
    assert all(len(node.leases) == LEASES_PER_NODE for node in decoded)
    assert len(answer(plugin.version - 1)["machines"]) == 1
    took = {
        "answer": time_calls(rounds, lambda: answer(-1)),
        "pack": time_calls(rounds, lambda: dumps(report)),
        "unpack": time_calls(rounds, lambda: loads(packed)),
        "decode": time_calls(rounds, lambda: decode_all(report["machines"])),
        "build_node": time_calls(rounds, lambda: [nodes.build_node(node, None, None) for node in decoded]),
    }
    read = [sum(stages) for stages in zip(*took.values(), strict=True)]
    change = time_calls(rounds, lambda: answer(plugin.version - 1))
    loop.run_until_complete(plugin.close())
    return {"read": read, **took, "change": change}


DASK = MeasuredCluster(
    backend="dask",
    title="Dask",
    package="distributed",
    script=__file__,
    read=measure_reading,
    read_bounds={"answer": 15.0, "read": 100.0},
)
STARTS, CLUSTER = make_tables(
    DASK,
    {
        "1,000 machines read": "read",
        "of it, Dask's scheduler is busy": "answer",
        "the same for a change of one machine": "change",
    },
)

if __name__ == "__main__":
    sys.exit(run_cluster(DASK, __doc__))
