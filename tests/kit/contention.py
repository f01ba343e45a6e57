"""Users whose schedulers know nothing of each other want the same GPUs at once, among a cluster's own tasks.

A process each: it says `ready`, begins when its input ends, and prints at its end what happened, as JSON. A use of a
device is [node, devices as CUDA_VISIBLE_DEVICES has them, share, began, ended]; the clock is the machine's.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from leftovers import VARIABLE
from world import tiny

import roost
from roost.scheduler.client.client import Client

KIT = str(Path(__file__).parent)
SCHEDULERS, EACH = 3, 20

T = TypeVar("T")


async def ask(backend: str, shares: Sequence[float], *, hold_s: float, policy: Any = None) -> dict[str, Any]:
    """What a user does: join, then start a kernel for each share, all at once, and stop each `hold_s` later.

    A `policy` of the asker's own decides; it finds the number of the request in `near`.
    """
    client, conflicts = roost.connect(backend), Counter[str]()
    client.listen(lambda event: event.kind == "conflict" and conflicts.update([event.kernel.id]))
    await client.up()
    if policy is not None:
        await client.add_policy(policy.name, policy)
    print("ready", flush=True)
    sys.stdin.read()

    async def one(number: int, share: float) -> list[Any]:
        # a wish that no node fulfils, so that the policy can tell requests apart
        wishes = {} if policy is None else {"near": {"number": str(number)}, "policy": policy.name}
        return await _hold(client, share, hold_s, wishes)

    held = await asyncio.gather(*(one(*asked) for asked in enumerate(shares)))
    left = [kernel.id for kernel in await client.kernels()]
    return {"held": held, "conflicts": list(conflicts.values()), "left": left}


async def _hold(client: Client, share: float, hold_s: float, wishes: Mapping[str, Any]) -> list[Any]:
    kernel = await client.start(tiny(gpus=share, launch_timeout_s=100, **wishes))
    began = time.monotonic()  # of the machine, so that those of all processes compare
    environment = Path(f"/proc/{kernel.pid}/environ").read_text().split("\0")
    (visible,) = (pair.partition("=")[2] for pair in environment if pair.startswith("CUDA_VISIBLE_DEVICES="))
    assert visible == ",".join(kernel.device_ids), (visible, kernel.device_ids)
    await asyncio.sleep(hold_s)  # what it is for: to hold its share a moment
    ended = time.monotonic()
    await client.stop(kernel.id, grace_s=0)
    return [kernel.node_id, visible, share, began, ended]


def contend(
    asker: str,
    shares: Sequence[float],
    homes: Sequence[str],
    tasks: Sequence[str],
    *,
    within_s: float,
    **environment: str,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What the users say at their ends, each with a runtime folder, and what the cluster's `tasks` say thereafter.

    `asker` is code, with the kit's folder and the shares as its arguments; `tasks` are code and its arguments. These
    begin when all users have joined, who then ask at the same time.
    """
    processes: list[subprocess.Popen[str]] = []
    try:
        processes.extend(
            _begin(asker, KIT, json.dumps(shares), **{VARIABLE: home}, **environment) for home in homes
        )
        for process in processes:
            _until_ready(process)
        askers = list(processes)
        processes.append(_begin(*tasks))
        _until_ready(processes[-1])
        for process in askers:
            assert process.stdin is not None
            process.stdin.close()  # all at once
            process.stdin = None
        said = [_told(process, within_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return said[:-1], said[-1]


def _begin(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any(line == "ready\n" for line in process.stdout), "it ended early"


def _told(process: subprocess.Popen[str], within_s: float) -> dict[str, Any]:
    """What it says at its end, once its input ends."""
    printed, _ = process.communicate(timeout=within_s)
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def most_at_once(uses: Iterable[tuple[T, float, float, float]]) -> dict[T, float]:
    """Of each thing, used by that share from then until then: the largest sum of shares at one moment."""
    uses_of = defaultdict(list)
    for thing, share, began, ended in uses:
        uses_of[thing].append((share, began, ended))
    return {
        thing: max(
            sum(share for share, began, ended in its if began <= moment < ended) for _, moment, _ in its
        )
        for thing, its in uses_of.items()
    }
