"""Kernels on a Dask cluster of three machines, on this one: how soon they answer, how many at once, and at what size.

What is measured is in `on_cluster.py`. With 1,000 machines of four GPUs and two leases each, when all are told of, as
to a service that joins:

read       all that follows, one after the other. Between them is the network, which is left out
answer     what roost's plugin in Dask's scheduler says of them: so long that does nothing else
pack       as Dask packs it (msgpack), and unpacks it in roost's service (`unpack`)
decode     → DaskNodes
as_node    → roost's nodes
change     `answer` where one machine of them has changed, as after a lease or a task: all later readings are so

Claims: start with a CPU, and with half a GPU, ≤ 0.25 × plain (medians); never more promised than there is;
answer ≤ 15 ms, read ≤ 100 ms. Without Dask it says so and exits with 77.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from on_cluster import LEASES_PER_NODE, NODES, Manager, run, timed

sys.path.append(str(Path(__file__).parents[1] / "docs/examples"))

from dask_machines import DaskMachines, Machine, why_not

MACHINES = (Machine(cpus=4, gpus=2), Machine(cpus=4, gpus=4), Machine(cpus=2))
GPUS = 4
AGENT = {
    "endpoint": "tcp://10.0.0.1:40002",
    "keys": {"server_public": "s" * 40, "public": "p" * 40, "secret": "k" * 40},
    "devices": [],
    "environment": {"DASK_SCHEDULER_ADDRESS": "tcp://10.0.0.1:8786"},
    "told": "0" * 32,
}


async def filled() -> Any:
    """roost's plugin for Dask's scheduler, as after NODES machines have come with all their leases."""
    from roost.scheduler.backends.dask.plugin.scheduler_plugin import OnScheduler
    from roost.scheduler.backends.dask.plugin.slot_ledger import Held, Slot

    plugin = OnScheduler("0", "")
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
            held = Held(
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
        plugin._tell(machine)
    return plugin


def reading(rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each stage of telling roost's service of NODES machines."""
    from distributed.protocol import dumps, loads

    from roost.scheduler.backends.dask import nodes
    from roost.scheduler.backends.dask.nodes import DaskNode

    loop = asyncio.new_event_loop()
    plugin = loop.run_until_complete(filled())

    def answer(since: int) -> dict[str, Any]:
        return loop.run_until_complete(plugin.nodes(since, plugin.incarnation, 0.0))

    def decode_all(machines: Mapping[str, Any]) -> list[DaskNode]:
        return [DaskNode.of(name, machine) for name, machine in machines.items()]

    said = answer(-1)
    packed = dumps(said)
    decoded = decode_all(loads(packed)["machines"])
    assert len(decoded) == NODES
    assert all(len(node.leases) == LEASES_PER_NODE for node in decoded)
    assert len(answer(plugin.version - 1)["machines"]) == 1
    took = {
        "answer": timed(rounds, lambda: answer(-1)),
        "pack": timed(rounds, lambda: dumps(said)),
        "unpack": timed(rounds, lambda: loads(packed)),
        "decode": timed(rounds, lambda: decode_all(said["machines"])),
        "as_node": timed(rounds, lambda: [nodes.as_node(node, None, None, None) for node in decoded]),
    }
    read = [sum(stages) for stages in zip(*took.values(), strict=True)]
    change = timed(rounds, lambda: answer(plugin.version - 1))
    loop.run_until_complete(plugin.close())
    return {"read": read, **took, "change": change}


DASK = Manager(
    backend="dask",
    title="Dask",
    script=__file__,
    variable="DASK_SCHEDULER_ADDRESS",
    start=lambda environment: DaskMachines(*MACHINES, environment=environment),
    why_not=why_not,
    read=reading,
    bounds={"roost-cpu": 0.25, "roost-gpu": 0.25},
    read_bounds={"answer": 15.0, "read": 100.0},
)

if __name__ == "__main__":
    sys.exit(run(DASK, __doc__))
