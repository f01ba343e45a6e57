"""Three services want the same two GPUs of a Docker engine, which has no accounting: no GPU is promised twice.

The services do not know each other. Their containers are the only accounts. A program reads the running containers all
the time, and each kernel notes which device it had, and when.
"""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path

import pytest

from kit.clusters.contention import EACH, SCHEDULERS, contend, most_at_once
from kit.clusters.docker.shared_cluster import cluster_settings
from kit.clusters.docker_engine import DockerEngine
from kit.clusters.faults import say

SHARES = (1.0, 1.0, 2.0, 1.0)

ASKER = """
import asyncio, json, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import psutil
from kit.clusters.contention import ask
from kit.clusters.own_machines import kernel_pid
from kit.machine.tiny_kernel import TINY_ARGV, tiny

home = Path(os.environ["ROOST_RUNTIME_DIR"])
settings = {**json.loads(os.environ["SETTINGS"]), "identity_file": str(home / "identity.json")}
(home / "jupyter_roost_config.json").write_text(json.dumps({"RoostDockerBackend": settings}))
os.environ["JUPYTER_CONFIG_DIR"] = str(home)
os.environ["PATH"] += ":/usr/bin"

async def hold(client, share, hold_s, wishes):
    kernel = await client.start(tiny(gpus=share, launch_timeout_s=500, argv=("python3", *TINY_ARGV[1:])))
    began = time.monotonic()
    visible = psutil.Process(kernel_pid(kernel.id)).environ()["NVIDIA_VISIBLE_DEVICES"]
    assert visible == ",".join(kernel.device_ids), (visible, kernel.device_ids)
    await asyncio.sleep(hold_s)
    ended = time.monotonic()
    await client.stop(kernel.id, grace_s=0)
    return [kernel.node_id, visible, share, began, ended]

print(json.dumps(asyncio.run(ask("docker", json.loads(sys.argv[2]), hold_s=0.3, hold=hold))))
"""

WATCHER = """
import json, sys, threading, time
import docker
from roost.scheduler.backends.docker.names import LEASE_LABEL

client, is_over, looks, over = docker.APIClient(base_url=sys.argv[1], timeout=20), threading.Event(), 0, []
print("ready", flush=True)
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
while not is_over.wait(0.05):
    running = client.containers(filters={"label": LEASE_LABEL})
    devices = [device for each in running for device in json.loads(each["Labels"][LEASE_LABEL])["device_ids"]]
    if len(devices) != len(set(devices)):
        over.append(devices)
    looks += 1
print(json.dumps({"looks": looks, "over": over}))
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sixty_kernels_of_three_services(
    users_runtime_dirs: list[str], tmp_path: Path, docker_engine: DockerEngine
) -> None:
    shares = list(itertools.islice(itertools.cycle(SHARES), EACH))
    settings = cluster_settings(docker_engine, tmp_path)
    environment = {"SETTINGS": json.dumps(settings), "USES": str(tmp_path)}
    began = time.monotonic()
    watcher = (WATCHER, docker_engine.address)
    answers, seen = contend(ASKER, shares, users_runtime_dirs, watcher, within_s=600, **environment)
    say(f"{SCHEDULERS * EACH} kernels after", began)
    assert docker_engine.objects() == []
    kernels = [use for answer in answers for use in answer["held"]]
    assert len(kernels) == SCHEDULERS * EACH
    assert [answer["left"] for answer in answers] == [[]] * SCHEDULERS
    uses = [(device, 1.0, *use[3:]) for use in kernels for device in use[1].split(",")]
    most = most_at_once(uses)
    assert most == {"0": 1.0, "1": 1.0}
    assert seen["looks"] > 100
    assert seen["over"] == [], "two containers had the same GPU"
    conflicts = [sum(answer["conflicts"]) for answer in answers]
    say(f"{seen['looks']} looks, conflicts {conflicts}")
    assert all(each <= 3 * EACH for each in conflicts), "a waiting request spins"
