"""Three users' schedulers and Dask's own tasks want the same GPUs: never more than there are, and nobody lost.

Nobody here knows of the others: the ledger in Dask's scheduler and the workers decide. What is promised is read from
the workers all the while, and from what each kernel and each task was told to use, and for how long it did.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from dask_machines import DaskMachines, Machine, why_not
from leftovers import VARIABLE, private_runtime_dir
from world import settle

KIT = str(Path(__file__).parent.parent / "kit")
SCHEDULERS, EACH = 3, 20
SHARES = (0.25, 0.5, 1.0, 0.25, 2.0)
MACHINES = (
    Machine(cpus=4, gpus=2, is_split=True),
    Machine(cpus=4, gpus=2),
    Machine(cpus=2, gpus=2),
)

ASKER = """
import asyncio, json, sys, time
from collections import Counter
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import roost
from world import tiny

async def one(client, share):
    kernel = await client.start(tiny(gpus=share, launch_timeout_s=100))
    began = time.monotonic()  # of the machine, so that those of all processes compare
    environment = Path(f"/proc/{kernel.pid}/environ").read_text().split("\\0")
    (visible,) = (pair.partition("=")[2] for pair in environment if pair.startswith("CUDA_VISIBLE_DEVICES="))
    assert visible == ",".join(kernel.device_ids), (visible, kernel.device_ids)
    await asyncio.sleep(0.7)  # what it is for: to hold its share a moment
    ended = time.monotonic()
    await client.stop(kernel.id, grace_s=0)
    return [kernel.node_id, visible, share, began, ended]

async def main():
    client, conflicts = roost.connect("dask"), Counter()
    client.listen(lambda event: event.kind == "conflict" and conflicts.update([event.kernel.id]))
    await client.up()
    print("ready", flush=True)
    sys.stdin.read()
    held = await asyncio.gather(*(one(client, share) for share in json.loads(sys.argv[2])))
    left = [kernel.id for kernel in await client.kernels()]
    print(json.dumps(dict(held=held, conflicts=list(conflicts.values()), left=left)))

asyncio.run(main())
"""

TASKS = """
import asyncio, json, os, sys, threading, time
from distributed import Client, as_completed, get_worker

def hold(number, share):
    began = time.monotonic()
    time.sleep(0.3)
    address = get_worker().address.rpartition(":")[0].rpartition("/")[2]
    return [address, os.environ.get("CUDA_VISIBLE_DEVICES", ""), share, began, time.monotonic()]

def look(dask_worker):
    "Of a worker: its GPUs, those that are free for tasks, and what tasks and kernels have"
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
        await client.gather([client.submit(hold, -share, share, resources={"GPU": share}) for share in (1, 0.5)])
        looking = asyncio.create_task(look_on(client))
        print("ready", flush=True)
        threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
        held, turn, waiting = [], 0, set()
        while waiting or not is_over.is_set():
            while len(waiting) < 4 and not is_over.is_set():
                share = (1, 0.5, 0.5)[turn % 3]
                waiting.add(client.submit(hold, turn, share, resources={"GPU": share}))
                turn += 1
            done, waiting = await asyncio.wait_for(wait(waiting), 60)
            held += await client.gather(list(done))
        await looking
        deadline = time.monotonic() + 5
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
def homes() -> Iterator[list[str]]:
    """A runtime folder for each user's service."""
    with ExitStack() as stack:
        folders = [stack.enter_context(private_runtime_dir()) for _ in range(SCHEDULERS)]
        yield folders
        for folder in folders:
            settle(Path(folder))


@pytest.fixture
def cluster(private_environment: None) -> Iterator[DaskMachines]:
    if reason := why_not():
        pytest.skip(reason)
    with private_runtime_dir() as folder, DaskMachines(*MACHINES, environment={VARIABLE: folder}) as started:
        yield started


def begin(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any(line == "ready\n" for line in process.stdout), "it ended early"


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it says at its end, once its input ends."""
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def most_at_once(held: list[list[Any]]) -> dict[tuple[str, str], float]:
    """By machine and device, the largest sum of shares that were used at one moment.

    For a machine as a whole (an empty device) it is the sum of all that was used there.
    """
    uses_of = defaultdict(list)
    for machine, visible, share, began, ended in held:
        uses_of[machine, ""].append((share, began, ended))
        for device in visible.split(","):
            if device:
                uses_of[machine, device].append((min(share, 1.0), began, ended))
    return {
        where: max(
            sum(share for share, began, ended in uses if began <= moment < ended) for _, moment, _ in uses
        )
        for where, uses in uses_of.items()
    }


@pytest.mark.fault
@pytest.mark.timeout(240)
def test_sixty_kernels_of_three_schedulers_among_dasks_own_tasks(
    cluster: DaskMachines, homes: list[str]
) -> None:
    shares = json.dumps(list(itertools.islice(itertools.cycle(SHARES), EACH)))
    askers = [
        begin(ASKER, KIT, shares, DASK_SCHEDULER_ADDRESS=cluster.address, **{VARIABLE: home})
        for home in homes
    ]
    processes = list(askers)
    try:
        for asker in askers:
            until_ready(asker)
        tasks = begin(TASKS, cluster.address)
        processes.append(tasks)
        until_ready(tasks)
        for asker in askers:
            assert asker.stdin is not None
            asker.stdin.close()  # all at once
            asker.stdin = None
        answers = [told(asker) for asker in askers]
        dask = told(tasks)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    kernels = [use for answer in answers for use in answer["held"]]
    assert len(kernels) == SCHEDULERS * EACH
    assert [answer["left"] for answer in answers] == [[]] * SCHEDULERS
    assert dask["leases"] == []
    assert all(free == total and not used for total, free, used in dask["left"]), dask["left"]
    assert sum(dask["known"]) == 6, dask["known"]
    most = most_at_once(kernels + dask["held"])
    by_machine = [share for (_, device), share in most.items() if not device]
    by_device = [share for (_, device), share in most.items() if device]
    assert len(by_machine) == 3
    assert max(by_machine) <= 2.0 + 1e-9, most
    assert max(by_device) <= 1.0 + 1e-9, most
    assert len(by_device) == 6, "not all GPUs were used"
    assert dask["looks"] > 50
    assert dask["wrong"] == [], "a worker promised more than it has"
    assert len(dask["held"]) > 10, "Dask's own tasks hardly ran: the test shows nothing"
    for answer in answers:  # a request that waits does not spin
        assert sum(answer["conflicts"]) <= 3 * EACH
