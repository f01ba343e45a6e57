"""Three services and applications of others want the same GPUs of a YARN cluster: no GPU is promised twice.

The services do not know each other, and each is another user of YARN with kernels in two queues. The others are
applications of Hadoop's distributed shell. YARN decides. The test reads the ResourceManager's accounting all the time.
Each kernel shows which GPUs it used, and when. Each container of others shows on which node it used a GPU, and when.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.clusters.contention import EACH, SCHEDULERS, contend, most_at_once
from kit.clusters.faults import assert_plain, say
from kit.clusters.hadoop_nodes import HadoopNodes, Machine, shell_settings, why_not
from kit.clusters.yarn.shared_cluster import assert_nothing_left, await_nothing, cluster_settings, in_use

SHARES = (1.0, 1.0, 2.0, 1.0)
MACHINES = (
    Machine(),
    Machine(vcores=16, gpus=2, gpu_model="T4"),  # 8 of the cores may be those of application masters
    Machine(vcores=16, gpus=4, gpu_model="A100"),
)
SETTINGS = {
    "yarn.resourcemanager.scheduler.monitor.enable": False
}  # no preemption: each kernel ends in order
WITHIN_S = 600

ASKER = """
import asyncio, itertools, json, os, sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kit.clusters.contention import ask
from roost.scheduler.client.this_owner import this_owner
from roost.scheduler.errors import RoostError
from kit.machine.tiny_kernel import tiny

MODELS = ((), ("T4",), ("A100",))
REFUSED = dict(gpus=5), dict(gpus=1, gpu_models=("H100",)), dict(gpus=0.5), dict(gpus=1, options={"queue": "none"})
home = Path(os.environ["ROOST_RUNTIME_DIR"])
settings = {**json.loads(os.environ["SETTINGS"]), "identity_file": str(home / "identity.json"), "user": home.name}
(home / "jupyter_roost_config.json").write_text(json.dumps({"RoostYarnBackend": settings}))
os.environ["JUPYTER_CONFIG_DIR"] = str(home)
turns, reasons, refusals = itertools.count(), set(), []

def build_start(**wishes):
    return replace(tiny(launch_timeout_s=500, **wishes), owner=this_owner(home.name, "test", False))

async def refuse(client, wishes):
    try:
        await client.start(build_start(**wishes))
    except RoostError as problem:
        refusals.append(problem.user_message)

async def hold(client, share, hold_s, _):
    turn = next(turns)
    if turn == 0:
        client.listen(lambda event: event.kernel and event.kernel.waits_for and reasons.add(event.kernel.waits_for))
        for wishes in REFUSED:
            await refuse(client, wishes)
    options = {"queue": ("default", "batch")[turn % 2]}
    kernel = await client.start(build_start(gpus=share, gpu_models=MODELS[turn % 3], options=options))
    began = time.monotonic()
    environment = Path(f"/proc/{kernel.pid}/environ").read_text().split("\\0")
    (visible,) = (pair.partition("=")[2] for pair in environment if pair.startswith("CUDA_VISIBLE_DEVICES="))
    await asyncio.sleep(hold_s)
    ended = time.monotonic()
    await client.stop(kernel.id, grace_s=0)
    return [kernel.node_id, visible, share, began, ended]

answer = asyncio.run(ask("yarn", json.loads(sys.argv[2]), hold_s=1.0, hold=hold))
print(json.dumps({**answer, "reasons": sorted(reasons), "refusals": refusals}))
"""

OTHERS = """
import json, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kit.clusters.hadoop_nodes import Rest, start_shell

CONTAINERS = 3
USE = '''
import os, sys, time
began = time.monotonic()
time.sleep(1)
with open(f"{sys.argv[1]}/{os.environ['CONTAINER_ID']}", "w") as file:
    print(os.environ["NM_HOST"], began, time.monotonic(), file=file)
'''
rest, configuration, folder = Rest(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
(folder / "use.py").write_text(USE)
(folder / "uses").mkdir()
command = f"{sys.executable} -S {folder}/use.py {folder}/uses"
looks, over, failed, is_over = 0, [], 0, threading.Event()

def amounts(row, kind):
    return {each["name"]: each["value"] for each in row[kind]["resourceInformations"]["resourceInformation"]}

def look():
    global looks
    for row in rest.get("/ws/v1/cluster/nodes")["nodes"]["node"]:
        total = amounts(row, "totalResource")
        for name, value in amounts(row, "usedResource").items():
            if value > total.get(name, 0):
                over.append(f"{row['nodeHostName']}: {value} {name}")
    looks += 1

print("ready", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
shell, shells = None, 0
while shell or not is_over.is_set():
    if shell is None:
        queue = ("batch", "default")[shells % 2]
        shell = start_shell(configuration, folder, command, containers=CONTAINERS, gpus=1, queue=queue)
        shells += 1
    look()
    if shell.poll() is not None:
        failed += shell.returncode != 0
        shell = None
    time.sleep(0.1)
held = []
for use in (folder / "uses").iterdir():
    node, began, ended = use.read_text().split()
    held.append([node, "", 1, float(began), float(ended)])
print(json.dumps(dict(held=held, looks=looks, over=over, shells=shells, failed=failed)))
"""

WAITS = (
    r"position \d+: .*",
    r"its agent is starting",
    r"YARN chooses its node",
    r"no node has room (for it now|now for .*)",
    r"queue (default|batch) is full: .*",
    r"queue (default|batch) gives \S+ no more now: user-limit-factor is [\d.]+",
    r"other applications of queue (default|batch) go first",
    r"roost's application master (starts|waits for room) in queue (root\.)?(default|batch|none)",
)
"""Patterns of the reasons that this test accepts for a waiting kernel."""
REFUSALS = ("5 GPUs", "H100", "whole GPUs only", "YARN has no queue none")


def devices(use: list[Any]) -> Iterator[tuple[tuple[str, str], float, float, float]]:
    """Yield ((node, device), share, began, ended) of each device that a kernel used."""
    node, visible, _, began, ended = use
    for device in visible.split(","):
        yield (node, device), 1.0, began, ended


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sixty_kernels_of_three_services_among_applications_of_others(
    users_runtime_dirs: list[str], tmp_path: Path, private_environment: None
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    tmp_path.chmod(0o700)
    shares = list(itertools.islice(itertools.cycle(SHARES), EACH))
    with HadoopNodes(*MACHINES, settings={**SETTINGS, **shell_settings()}) as cluster:
        environment = {"SETTINGS": json.dumps(cluster_settings(cluster, tmp_path)), "USES": str(tmp_path)}
        kit, manager = (
            str(Path(cluster_settings.__code__.co_filename).parent),
            f"{cluster.address_of('rm1')}:8088",
        )
        others = (OTHERS, kit, manager, str(cluster.configuration), str(tmp_path))
        began = time.monotonic()
        answers, seen = contend(ASKER, shares, users_runtime_dirs, others, within_s=WITHIN_S, **environment)
        say(f"{SCHEDULERS * EACH} kernels and {len(seen['held'])} containers of others after", began)
        gpus = {cluster.address_of(name): machine.gpus for name, machine in cluster.machines.items()}
        masters = cluster.applications()
        assert len({row["user"] for row in masters}) == SCHEDULERS
        assert len(masters) == 2 * SCHEDULERS, "not one for each service and queue"
        kept = [row["amContainerLogs"].split("/")[-2] for row in masters]
        await_nothing(lambda: in_use(cluster, but=kept))
        for row in masters:
            cluster.rest.call("PUT", f"/ws/v1/cluster/apps/{row['id']}/state", {"state": "KILLED"})
        assert_nothing_left(cluster)
    kernels = [use for answer in answers for use in answer["held"]]
    assert len(kernels) == SCHEDULERS * EACH
    assert [answer["left"] for answer in answers] == [[]] * SCHEDULERS
    assert all(len(set(visible.split(","))) == share for _, visible, share, _, _ in kernels)
    most = most_at_once(device for use in kernels for device in devices(use))
    assert max(most.values()) <= 1.0, most
    held = most_at_once((node, share, *times) for node, _, share, *times in kernels + seen["held"])
    assert held == {node: count for node, count in gpus.items() if count}, (
        "too many, or not all GPUs were used"
    )
    assert seen["looks"] > 100
    assert seen["over"] == [], "YARN promised more than there is"
    assert seen["failed"] == 0
    assert len(seen["held"]) >= 3 * seen["shells"] > 3, "hardly any application of others ran"
    reasons = {reason for answer in answers for reason in answer["reasons"]}
    for answer in answers:
        assert len(answer["refusals"]) == len(REFUSALS)
        assert all(part in text for part, text in zip(REFUSALS, answer["refusals"], strict=True)), answer
    for text in {*reasons, *answers[0]["refusals"]}:
        say(repr(text))
        assert_plain(text)
    strange = [reason for reason in reasons if not any(re.fullmatch(wait, reason) for wait in WAITS)]
    assert strange == []
    assert {reason.split()[0] for reason in reasons} >= {"no", "queue"}, "a kind of reason is missing"
    conflicts = [sum(answer["conflicts"]) for answer in answers]
    say(f"{seen['shells']} applications of others, {seen['looks']} looks, conflicts {conflicts}")
    assert all(each <= 3 * EACH for each in conflicts), "a waiting request spins"
