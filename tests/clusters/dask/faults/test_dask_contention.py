"""Three schedulers and Dask's own tasks want the same GPUs: no GPU is promised twice, and no start is lost.

The schedulers do not know each other. The ledger in Dask's scheduler and the workers decide. The test reads the
promises from the workers all the time. It also reads which device each kernel and task used, and when.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.clusters.contention import EACH, SCHEDULERS, contend, most_at_once
from roost.testing.clusters.dask_machines import DaskMachines, Machine, why_not
from roost.testing.leftovers import VARIABLE, private_runtime_dir

SHARES = (0.25, 0.5, 1.0, 0.25, 2.0)
MACHINES = (
    Machine(cpus=4, gpus=2, is_split=True),
    Machine(cpus=4, gpus=2),
    Machine(cpus=2, gpus=2),
)

ASKER = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from kit.clusters.contention import ask

print(json.dumps(asyncio.run(ask("dask", json.loads(sys.argv[2]), hold_s=0.7))))
"""

TASKS = """
import asyncio, json, os, sys, threading, time
from distributed import Client, as_completed, get_worker

def hold(number, share, uses, within_s):
    "Hold the share until two more uses have begun, so that uses overlap, and for 0.3 s at least"
    began = time.monotonic()
    enough = len(os.listdir(uses)) + 3  # this one and two more
    open(f"{uses}/{number}", "x").close()
    time.sleep(0.3)  # paces the tasks: each end changes what the schedulers see
    while len(os.listdir(uses)) < enough and time.monotonic() < began + within_s:
        time.sleep(0.01)
    address = get_worker().address.rpartition(":")[0].rpartition("/")[2]
    return [address, os.environ.get("CUDA_VISIBLE_DEVICES", ""), share, began, time.monotonic()]

def look(dask_worker):
    "Return a worker's GPUs, its free GPUs, and the GPUs of tasks and kernels"
    state = dask_worker.state
    claims, granted = dask_worker.__dict__["_roost_claims"]
    tasks = sum(task.resource_restrictions.get("GPU", 0) for task in state.executing | state.long_running)
    leased = sum(claims[lease].get("GPU", 0) for lease in granted)
    total, free = (of["GPU"] for of in (state.total_resources, state.available_resources))
    return total, free, tasks + leased

def ledger(dask_scheduler):
    plugin = dask_scheduler.plugins["roost"]
    known = [worker.resources["GPU"] for worker in dask_scheduler.workers.values()]
    return [lease.lease_id for lease in plugin.ledger.leases.values()], known

looks, wrong, is_over = 0, [], threading.Event()

async def look_on(client):
    global looks
    while not is_over.is_set():
        for total, free, used in (await client.run(look)).values():
            if free > total + 1e-6 or used > total + 1e-6:
                wrong.append([total, free, used])
        looks += 1
        await asyncio.sleep(0.02)

async def main():
    async with Client(sys.argv[1], asynchronous=True) as client:
        uses = sys.argv[2]
        first = [client.submit(hold, -share, share, uses, 0, resources={"GPU": share}) for share in (1, 0.5)]
        await client.gather(first)
        looking = asyncio.create_task(look_on(client))
        print("ready", flush=True)
        threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
        held, turn, waiting = [], 0, set()
        while waiting or not is_over.is_set():
            while len(waiting) < 4 and not is_over.is_set():
                share = (1, 0.5, 0.5)[turn % 3]
                waiting.add(client.submit(hold, turn, share, uses, 2, resources={"GPU": share}))
                turn += 1
            done, waiting = await asyncio.wait_for(wait(waiting), 60)
            held += await client.gather(list(done))
        await looking
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            left = list((await client.run(look)).values())
            leases, known = await client.run_on_scheduler(ledger)
            if not leases and all(free == total and not used for total, free, used in left):
                break
            await asyncio.sleep(0.05)
        print(json.dumps(dict(held=held, looks=looks, wrong=wrong, left=left, leases=leases, known=known)))

async def wait(futures):
    from distributed import wait
    done, rest = await wait(futures, return_when="FIRST_COMPLETED")
    return done, set(rest)

asyncio.run(main())
"""


@pytest.fixture
def dask_machines(private_environment: None) -> Iterator[DaskMachines]:
    if reason := why_not():
        pytest.skip(reason)
    with private_runtime_dir() as folder, DaskMachines(*MACHINES, environment={VARIABLE: folder}) as started:
        yield started


def devices(use: list[Any]) -> Iterator[tuple[tuple[str, str], float, float, float]]:
    """Yield ((machine, device), share, began, ended) of each used device, and with the device "" of the machine."""
    machine, visible, share, began, ended = use
    yield (machine, ""), share, began, ended
    for device in visible.split(","):
        if device:
            yield (machine, device), min(share, 1.0), began, ended


@pytest.mark.long
def test_sixty_kernels_of_three_schedulers_among_dasks_own_tasks(
    dask_machines: DaskMachines, users_runtime_dirs: list[str], tmp_path: Path
) -> None:
    shares = list(itertools.islice(itertools.cycle(SHARES), EACH))
    answers, dask = contend(
        ASKER,
        shares,
        users_runtime_dirs,
        (TASKS, dask_machines.address, str(tmp_path)),
        within_s=120,
        USES=str(tmp_path),
        DASK_SCHEDULER_ADDRESS=dask_machines.address,
    )
    kernels = [use for answer in answers for use in answer["held"]]
    assert len(kernels) == SCHEDULERS * EACH
    assert [answer["left"] for answer in answers] == [[]] * SCHEDULERS
    assert dask["leases"] == []
    assert all(free == total and not used for total, free, used in dask["left"]), dask["left"]
    assert sum(dask["known"]) == 6, dask["known"]
    most = most_at_once(one for use in kernels + dask["held"] for one in devices(use))
    by_machine = [share for (_, device), share in most.items() if not device]
    by_device = [share for (_, device), share in most.items() if device]
    assert len(by_machine) == 3
    assert max(by_machine) <= 2.0 + 1e-9, most
    assert max(by_device) <= 1.0 + 1e-9, most
    assert len(by_device) == 6, "not all GPUs were used"
    assert dask["looks"] > 50
    assert dask["wrong"] == [], "a worker promised more than it has"
    assert len(dask["held"]) > 10, "Dask's own tasks hardly ran: the test shows nothing"
    for answer in answers:  # a waiting request does not spin
        assert sum(answer["conflicts"]) <= 3 * EACH
