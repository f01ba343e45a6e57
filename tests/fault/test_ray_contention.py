"""Three users' schedulers and Ray's own tasks want the same GPUs: never more than there are, and nobody lost.

Nobody here knows of the others: Ray alone decides. What is promised is read from Ray's state all the while, and from
what each kernel and each task was told to use, and for how long it did.
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
from leftovers import VARIABLE, private_runtime_dir
from raylets import Raylets
from world import settle

KIT = str(Path(__file__).parent.parent / "kit")
SCHEDULERS, EACH = 3, 20
SHARES = (0.25, 0.25, 1.0, 0.25)

ASKER = """
import asyncio, json, os, sys, time
from collections import Counter
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import roost
from roost.placement import policy
from world import tiny

class Noting:
    "`balanced`, and a line for each decision: for which kernel, what the nodes had promised, whether it was placed"
    name = "noting"
    def __init__(self, file):
        self.file = file
    def place(self, request, snapshot, *, avoid={}):
        decision = policy("balanced").place(request, snapshot, avoid=avoid)
        nodes = [snapshot.node(node_id) for node_id in snapshot.nodes]
        seen = [(node.gpus_promised, [device.promised for device in node.devices]) for node in nodes]
        with open(self.file, "a") as file:
            file.write(json.dumps([request.near["number"], seen, decision.placement is not None]) + "\\n")
        return decision

async def one(client, number, share):
    near = {"number": str(number)}  # a wish that no node fulfils, so that the policy can tell requests apart
    asked = tiny(gpus=share, near=near, policy="noting", launch_timeout_s=100)
    kernel = await client.start(asked)
    began = time.monotonic()  # of the machine, so that those of all processes compare
    environment = Path(f"/proc/{kernel.pid}/environ").read_text().split("\\0")
    (visible,) = (pair.partition("=")[2] for pair in environment if pair.startswith("CUDA_VISIBLE_DEVICES="))
    assert visible == ",".join(kernel.device_ids), (visible, kernel.device_ids)
    await asyncio.sleep(1.0)  # what it is for: to hold its share a moment
    ended = time.monotonic()
    await client.stop(kernel.id, grace_s=0)
    return [kernel.node_id, visible, share, began, ended]

async def main():
    client, conflicts = roost.connect("ray"), Counter()
    client.listen(lambda event: event.kind == "conflict" and conflicts.update([event.kernel.id]))
    file = os.path.join(os.environ["ROOST_RUNTIME_DIR"], "decisions")
    await client.add_policy("noting", Noting(file))
    await client.up()
    print("ready", flush=True)
    sys.stdin.read()
    held = await asyncio.gather(*(one(client, *asked) for asked in enumerate(json.loads(sys.argv[2]))))
    decisions = [json.loads(line) for line in Path(file).read_text().splitlines()]
    left = [kernel.id for kernel in await client.kernels()]
    print(json.dumps(dict(held=held, conflicts=list(conflicts.values()), decisions=decisions, left=left)))

asyncio.run(main())
"""

DRIVER = """
import json, sys, threading, time
import ray
from ray._private.worker import global_worker
from ray.core.generated import autoscaler_pb2
from ray.util.placement_group import placement_group_table

ray.init(address=sys.argv[1], namespace="roost", log_to_driver=False, configure_logging=False)

@ray.remote(num_cpus=0, max_calls=0)
def hold(share):
    began = time.monotonic()
    time.sleep(0.3)
    (device,) = ray.get_gpu_ids()
    return [ray.util.get_node_ip_address(), str(device), share, began, time.monotonic()]

def look():
    "Nodes' GPUs in Ray's own accounting: all, free, and what groups hold of them"
    content = global_worker.gcs_client.get_cluster_resource_state(timeout_s=5)
    states = autoscaler_pb2.GetClusterResourceStateReply.FromString(content).cluster_resource_state.node_states
    for state in states:
        total, free = state.total_resources, state.available_resources
        held = sum(total[name] for name in total if name.startswith("GPU_group_") and name.count("_") == 2)
        yield round(total["GPU"], 4), round(free["GPU"], 4), round(held, 4)

looks, wrong, is_over = 0, [], threading.Event()

def look_on():
    global looks
    while not is_over.is_set():
        wrong.extend(one for one in look() if not 0 <= one[1] <= one[0] or one[2] > one[0])
        looks += 1
        time.sleep(0.02)

ray.get([hold.options(num_gpus=share).remote(share) for share in (1, 0.25)])
looker = threading.Thread(target=look_on)
looker.start()
print("ready", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
held, waiting, turn = [], {}, 0
while waiting or not is_over.is_set():
    while len(waiting) < 3 and not is_over.is_set():
        share = (1, 0.25, 0.25)[turn % 3]
        waiting[hold.options(num_gpus=share).remote(share)] = turn = turn + 1
    done, _ = ray.wait(list(waiting), timeout=10)
    held += ray.get(done)
    for reference in done:
        del waiting[reference]
looker.join()
deadline = time.monotonic() + 5
while any(free != total or of_groups for total, free, of_groups in look()) and time.monotonic() < deadline:
    time.sleep(0.05)
groups = [one["name"] for one in placement_group_table().values() if one["state"] != "REMOVED"]
print(json.dumps(dict(held=held, looks=looks, wrong=wrong, left=[*look()], groups=groups)))
"""


@pytest.fixture
def homes() -> Iterator[list[str]]:
    """A runtime folder for each user's service."""
    with ExitStack() as stack:
        folders = [stack.enter_context(private_runtime_dir()) for _ in range(SCHEDULERS)]
        yield folders
        for folder in folders:
            settle(Path(folder))


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
    printed, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def most_at_once(held: list[list[Any]]) -> dict[tuple[str, str], float]:
    """By node and device, the largest sum of shares that were used at one moment."""
    by_device = defaultdict(list)
    for node, visible, share, began, ended in held:
        for device in visible.split(","):
            by_device[node, device].append((share, began, ended))
    return {
        device: max(
            sum(share for share, began, ended in uses if began <= moment < ended) for _, moment, _ in uses
        )
        for device, uses in by_device.items()
    }


@pytest.mark.fault
@pytest.mark.timeout(180)
def test_sixty_kernels_of_three_schedulers_among_rays_own_tasks(
    ray_cluster: Raylets, homes: list[str]
) -> None:
    driver = begin(DRIVER, ray_cluster.address)
    shares = json.dumps(list(itertools.islice(itertools.cycle(SHARES), EACH)))
    askers = [
        begin(ASKER, KIT, shares, RAY_ADDRESS=ray_cluster.address, **{VARIABLE: home}) for home in homes
    ]
    try:
        for process in (driver, *askers):
            until_ready(process)
        for asker in askers:
            assert asker.stdin is not None
            asker.stdin.close()  # all at once
            asker.stdin = None
        answers = [told(asker) for asker in askers]
        ray = told(driver)
    finally:
        for process in (driver, *askers):
            process.kill()
            process.communicate()
    kernels = [use for answer in answers for use in answer["held"]]
    assert len(kernels) == SCHEDULERS * EACH
    assert [answer["left"] for answer in answers] == [[]] * SCHEDULERS
    assert ray["groups"] == []
    assert all(free == total and not held for total, free, held in ray["left"])
    most = most_at_once(kernels + ray["held"])
    assert max(most.values()) <= 1.0 + 1e-9, most
    assert len(most) == 6, "not all GPUs were used"
    assert ray["looks"] > 100
    assert ray["wrong"] == [], "Ray promised more than there is"
    assert len(ray["held"]) > 10, "Ray's own tasks hardly ran: the test shows nothing"
    for answer in answers:  # a request that waits does not spin
        assert sum(answer["conflicts"]) <= 3 * EACH
        pictures = [seen for _, seen, _ in answer["decisions"]]
        changes = sum(one != other for one, other in itertools.pairwise(pictures))
        assert repeated(answer["decisions"]) <= changes


def repeated(decisions: list[list[Any]]) -> int:
    """How often a request was decided again on the very picture on which it had found no room."""
    last: dict[str, Any] = {}
    count = 0
    for number, seen, is_placed in decisions:
        count += last.get(number) == seen
        last[number] = None if is_placed else seen
    return count
