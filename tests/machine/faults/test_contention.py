"""Many starts on few GPUs: the GPUs never hold too many kernels, and no start is lost."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

from kit import TESTS
from roost.scheduler.client.client import Client
from roost.scheduler.messages import Event
from roost.testing.deadlines import allow_s

ASKER = """
import asyncio, json, os, sys
sys.path.insert(0, sys.argv[1])
import roost
from kit.machine.tiny_kernel import tiny

async def one(client):
    kernel = await client.start(tiny(gpus=0.25, launch_timeout_s=100))
    await asyncio.sleep(0.05)  # holds its share a moment
    await client.stop(kernel.id, grace_s=0)
    return kernel.id, kernel.device_ids

async def main():
    client = roost.connect("local", gpus=2)
    print(json.dumps(await asyncio.gather(*(one(client) for _ in range(25)))))

asyncio.run(main())
"""


def test_a_hundred_kernels_from_four_processes_on_two_gpus(client: Client, settled_runtime_dir: Path) -> None:
    held: set[str] = set()
    peak, positions, lock = 0, set(), threading.Lock()

    def look(event: Event) -> None:
        nonlocal peak
        if event.kernel is None:
            return
        with lock:
            if event.kind == "leased":
                held.add(event.kernel.id)
            elif event.kind == "released":
                held.discard(event.kernel.id)
            elif event.kind == "queued" and event.kernel.position is not None:
                positions.add(event.kernel.position)
            peak = max(peak, len(held))

    client.listen(look)
    assert client.kernels().result(allow_s(20)) == []
    askers = [
        subprocess.Popen([sys.executable, "-c", ASKER, str(TESTS)], stdout=subprocess.PIPE) for _ in range(4)
    ]
    most = 0
    while any(asker.poll() is None for asker in askers):
        (node,) = client.nodes().result(allow_s(20))
        shares = [device["promised"] for device in node["devices"]]
        assert max(shares) <= 1.0 + 1e-6
        most = max(most, round(sum(shares) / 0.25))
    started = [tuple(item) for asker in askers for item in json.loads(asker.communicate()[0])]
    assert len({kernel_id for kernel_id, _ in started}) == 100
    assert all(len(device_ids) == 1 for _, device_ids in started)
    assert max(peak, most) <= 8, "more shares were held than there are"
    assert peak == 8, "the GPUs were never full: the test shows nothing"
    assert {1, 2, 3} <= positions
    assert client.kernels().result(allow_s(20)) == []
    (node,) = client.nodes().result(allow_s(20))
    assert [device["promised"] for device in node["devices"]] == [0, 0]
