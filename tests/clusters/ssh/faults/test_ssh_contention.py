"""Services of three Unix users want the same GPUs of SSH hosts: no GPU is promised twice, and no start is lost.

The services do not know each other. The book of each host decides, and the test reads all books all the time.
"""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import pytest

from kit.clusters.contention import EACH, SCHEDULERS, contend, most_at_once
from kit.clusters.faults import say
from kit.clusters.ssh.shared_cluster import cluster_settings
from kit.clusters.ssh_hosts import SshHosts

SHARES = (0.25, 0.5, 1.0, 0.0, 2.0)
CPUS = 0.5
"""How many CPUs each kernel asks for, so that CPUs are scarce too."""
REFRESH_S = 5.0
"""How long a start may wait for the figures of a host whose GPUs others have given back."""

ASKER = """
import asyncio, json, os, sys, time
from dataclasses import replace
sys.path.insert(0, sys.argv[1])
os.environ["JUPYTER_CONFIG_DIR"] = json.loads(os.environ["CONFIGS"])[os.environ["ROOST_RUNTIME_DIR"]]
from kit.clusters.contention import ask
from kit.machine.tiny_kernel import tiny

async def hold(client, share, hold_s, wishes):
    start = tiny(gpus=share, cpus=float(os.environ["CPUS"]), launch_timeout_s=100)
    kernel = await client.start(replace(start, queue_timeout_s=300.0))
    began = time.monotonic()
    await asyncio.sleep(hold_s)
    ended = time.monotonic()
    await client.stop(kernel.id, grace_s=0)
    return [kernel.node_id, ",".join(kernel.device_ids), share, began, ended]

print(json.dumps(asyncio.run(ask("ssh", json.loads(sys.argv[2]), hold_s=0.7, hold=hold))))
"""

LOOK = """
import collections, glob, json, os, sys, threading, time

def read(book):
    "Return the promises of all agents, by the file and the name in it"
    found = {}
    for path in glob.glob(f"{book}/roost-*.json"):
        try:
            with open(path) as file:
                promises = json.load(file)["promises"]
        except FileNotFoundError:
            continue
        found |= {(path, name): promise for name, promise in promises.items()}
    return found

def look(book):
    "Return the promises that are in a book at one moment"
    found = read(book)
    # A promise that has ended meanwhile may have made room for another one, which was read later.
    later = read(book)
    return {name: promise for name, promise in found.items() if name in later}

books, is_over = json.loads(sys.argv[1]), threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), is_over.set()), daemon=True).start()
print("ready", flush=True)
looks, users, most, longest_s, last = 0, 0, collections.Counter(), 0.0, time.monotonic()
while not is_over.is_set():
    for name, book in books.items():
        promises, sums = look(book), collections.Counter()
        for promise in promises.values():
            sums[f"{name} cpus"] += promise["cpus"]
            for device, share in promise["devices"].items():
                sums[f"{name} device {device}"] += share
        most |= sums
        users = max(users, len({os.path.basename(path).split("-")[1] for path, _ in promises}))
    looks += 1
    longest_s, last = max(longest_s, time.monotonic() - last), time.monotonic()
    time.sleep(0.003)
deadline = time.monotonic() + 60
while (left := [path for book in books.values() for path, _ in look(book)]) and time.monotonic() < deadline:
    time.sleep(0.1)
print(json.dumps(dict(looks=looks, users=users, most=most, longest_s=longest_s, left=left)))
"""


@pytest.mark.long
async def test_sixty_kernels_of_three_users(
    fault_hosts: SshHosts, users_runtime_dirs: list[str], tmp_path: Path
) -> None:
    configs = {}
    for user, home in zip(fault_hosts.users, users_runtime_dirs, strict=True):
        (tmp_path / user).mkdir()
        settings = {**cluster_settings(fault_hosts, user), "agent_idle_exit_s": 3.0, "refresh_s": REFRESH_S}
        (tmp_path / user / "jupyter_roost_config.json").write_text(json.dumps({"RoostSshBackend": settings}))
        configs[home] = str(tmp_path / user)
    books = {name: str(fault_hosts.root(name) / "run/lock") for name in fault_hosts.names}
    answers, seen = contend(
        ASKER,
        list(itertools.islice(itertools.cycle(SHARES), EACH)),
        users_runtime_dirs,
        (LOOK, json.dumps(books)),
        within_s=600,
        CONFIGS=json.dumps(configs),
        CPUS=str(CPUS),
        USES=str(tmp_path),
    )
    uses = [use for answer in answers for use in answer["held"]]
    took_s = max(use[4] for use in uses) - min(use[3] for use in uses)
    say(f"{took_s:.1f} s, conflicts {[sum(answer['conflicts']) for answer in answers]}, {seen}")
    assert len(uses) == SCHEDULERS * EACH
    assert [answer["left"] for answer in answers] == [[]] * SCHEDULERS
    assert seen["left"] == []
    assert seen["looks"] > 50
    assert seen["users"] == SCHEDULERS, "the users hardly met: the test shows nothing"
    devices = {name: share for name, share in seen["most"].items() if "device" in name}
    assert len(devices) == 3, "not all GPUs were used"
    assert max(devices.values()) <= 1.0 + 1e-9, devices
    cpus = [amount for name, amount in seen["most"].items() if "cpus" in name]
    assert max(cpus) <= len(os.sched_getaffinity(0)) + 1e-9, seen["most"]
    most = most_at_once(
        ((node, device), min(share, 1.0), began, ended)
        for node, visible, share, began, ended in uses
        for device in visible.split(",")
        if device
    )
    assert max(most.values()) <= 1.0 + 1e-9, most
