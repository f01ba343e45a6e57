"""Three schedulers and Ray's own tasks want the same GPUs: no GPU is promised twice, and no start is lost.

The schedulers do not know each other. Ray alone decides. The test reads the promises from Ray's state all the time. It
also reads which device each kernel and task used, and when.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.clusters.contention import EACH, SCHEDULERS, contend, most_at_once
from roost.testing.clusters.raylets import Raylets

SHARES = (0.25, 0.25, 1.0, 0.25)

ASKER = """
import asyncio, json, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kit.clusters.contention import ask
from roost.placement import get_policy

class Noting:
    "`balanced`, which writes a line per decision: the kernel, the promises of the nodes, and if it was placed"
    name = "noting"
    def __init__(self, file):
        self.file = file
    def place(self, request, snapshot, *, avoid={}):
        decision = get_policy("balanced").place(request, snapshot, avoid=avoid)
        nodes = [snapshot.node(node_id) for node_id in snapshot.nodes]
        seen = [(node.gpus_promised, [device.promised for device in node.devices]) for node in nodes]
        with open(self.file, "a") as file:
            file.write(json.dumps([request.near["number"], seen, decision.placement is not None]) + "\\n")
        return decision

file = os.path.join(os.environ["ROOST_RUNTIME_DIR"], "decisions")
said = asyncio.run(ask("ray", json.loads(sys.argv[2]), hold_s=1.0, policy=Noting(file)))
decisions = [json.loads(line) for line in Path(file).read_text().splitlines()]
print(json.dumps({**said, "decisions": decisions}))
"""

DRIVER = """
import json, os, sys, threading, time
import ray
from ray._private.worker import global_worker
from ray.core.generated import autoscaler_pb2
from ray.util.placement_group import placement_group_table

ray.init(address=sys.argv[1], namespace="roost", log_to_driver=False, configure_logging=False)

@ray.remote(num_cpus=0, max_calls=0)
def hold(number, share, uses, within_s):
    "Hold the share until two more uses have begun, so that uses overlap, and for 0.3 s at least"
    began = time.monotonic()
    enough = len(os.listdir(uses)) + 3  # this one and two more
    open(f"{uses}/{number}", "x").close()
    time.sleep(0.3)  # paces the tasks: each end changes what the schedulers see
    while len(os.listdir(uses)) < enough and time.monotonic() < began + within_s:
        time.sleep(0.01)
    (device,) = ray.get_gpu_ids()
    return [ray.util.get_node_ip_address(), str(device), share, began, time.monotonic()]

def look():
    "Yield each node's GPUs in Ray's own accounting: all, free, and held by groups"
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

uses = sys.argv[2]
ray.get([hold.options(num_gpus=share).remote(-share, share, uses, 0) for share in (1, 0.25)])
looker = threading.Thread(target=look_on)
looker.start()
print("ready", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
held, waiting, turn = [], {}, 0
while waiting or not is_over.is_set():
    while len(waiting) < 3 and not is_over.is_set():
        share = (1, 0.25, 0.25)[turn % 3]
        waiting[hold.options(num_gpus=share).remote(turn, share, uses, 2)] = turn = turn + 1
    done, _ = ray.wait(list(waiting), timeout=10)
    held += ray.get(done)
    for reference in done:
        del waiting[reference]
looker.join()
deadline = time.monotonic() + 60
while any(free != total or of_groups for total, free, of_groups in look()) and time.monotonic() < deadline:
    time.sleep(0.05)
groups = [one["name"] for one in placement_group_table().values() if one["state"] != "REMOVED"]
print(json.dumps(dict(held=held, looks=looks, wrong=wrong, left=[*look()], groups=groups)))
"""


def devices(use: list[Any]) -> Iterator[tuple[tuple[str, str], float, float, float]]:
    """Yield ((node, device), share, began, ended) of each device that a kernel or task used."""
    node, visible, share, began, ended = use
    for device in visible.split(","):
        yield (node, device), share, began, ended


@pytest.mark.long
def test_sixty_kernels_of_three_schedulers_among_rays_own_tasks(
    ray_cluster: Raylets, users_runtime_dirs: list[str], tmp_path: Path
) -> None:
    shares = list(itertools.islice(itertools.cycle(SHARES), EACH))
    driver = (DRIVER, ray_cluster.address, str(tmp_path))
    environment = {"RAY_ADDRESS": ray_cluster.address, "USES": str(tmp_path)}
    answers, ray = contend(ASKER, shares, users_runtime_dirs, driver, within_s=100, **environment)
    kernels = [use for answer in answers for use in answer["held"]]
    assert len(kernels) == SCHEDULERS * EACH
    assert [answer["left"] for answer in answers] == [[]] * SCHEDULERS
    assert ray["groups"] == []
    assert all(free == total and not held for total, free, held in ray["left"])
    most = most_at_once(one for use in kernels + ray["held"] for one in devices(use))
    assert max(most.values()) <= 1.0 + 1e-9, most
    assert len(most) == 6, "not all GPUs were used"
    assert ray["looks"] > 100
    assert ray["wrong"] == [], "Ray promised more than there is"
    assert len(ray["held"]) > 10, "Ray's own tasks hardly ran: the test shows nothing"
    for answer in answers:  # a waiting request does not spin
        assert sum(answer["conflicts"]) <= 3 * EACH
        pictures = [seen for _, seen, _ in answer["decisions"]]
        changes = sum(one != other for one, other in itertools.pairwise(pictures))
        assert repeated(answer["decisions"]) <= changes


def repeated(decisions: list[list[Any]]) -> int:
    """Return how many decisions were useless: the nodes had not changed since the last refusal of the same request."""
    last: dict[str, Any] = {}
    count = 0
    for number, seen, is_placed in decisions:
        count += last.get(number) == seen
        last[number] = None if is_placed else seen
    return count
