"""Users, each with a scheduler, want the same GPUs at the same time as the cluster's own tasks.

Each user is a process. It prints `ready`, begins when its input ends, and prints its results as JSON. A use of a device
is [node, CUDA_VISIBLE_DEVICES, share, began, ended]. All processes share the machine's monotonic clock. Each use adds a
file to the folder that the variable USES names.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import roost
from kit.machine.tiny_kernel import tiny
from roost.scheduler.client.client import Client
from roost.testing.leftovers import VARIABLE

KIT = str(Path(__file__).parents[2])
SCHEDULERS, EACH = 3, 20

T = TypeVar("T")


async def ask(
    backend: str,
    shares: Sequence[float],
    *,
    hold_s: float,
    policy: Any = None,
    hold: Callable[..., Awaitable[list[Any]]] | None = None,
) -> dict[str, Any]:
    """Act as one user: start a kernel for each GPU share at once, and stop each kernel `hold_s` later.

    `hold` (by default `_hold`) starts, uses and stops one kernel, and returns its use. The optional `policy`
    places the kernels. The policy finds the number of the request in `near`. Return the uses, the conflicts and the
    kernels that are left.
    """
    client, conflicts = roost.connect(backend), Counter[str]()
    client.listen(lambda event: event.kind == "conflict" and conflicts.update([event.kernel.id]))
    await client.up()
    if policy is not None:
        await client.add_policy(policy.name, policy)
    print("ready", flush=True)
    sys.stdin.read()

    async def one(number: int, share: float) -> list[Any]:
        # no node has this label, so it only tells the policy which request it is
        wishes = {} if policy is None else {"near": {"number": str(number)}, "policy": policy.name}
        return await (hold or _hold)(client, share, hold_s, wishes)

    held = await asyncio.gather(*(one(*asked) for asked in enumerate(shares)))
    left = [kernel.id for kernel in await client.kernels()]
    return {"held": held, "conflicts": list(conflicts.values()), "left": left}


async def _hold(client: Client, share: float, hold_s: float, wishes: Mapping[str, Any]) -> list[Any]:
    kernel = await client.start(tiny(gpus=share, launch_timeout_s=100, **wishes))
    began = time.monotonic()  # the machine's clock, so all processes' times compare
    Path(os.environ["USES"], kernel.id).touch()
    environment = Path(f"/proc/{kernel.pid}/environ").read_text().split("\0")
    (visible,) = (pair.partition("=")[2] for pair in environment if pair.startswith("CUDA_VISIBLE_DEVICES="))
    assert visible == ",".join(kernel.device_ids), (visible, kernel.device_ids)
    await asyncio.sleep(hold_s)  # holds its share a moment
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
    """Run a user in each of the runtime folders `homes`, and the cluster's `tasks` beside them. Return all results.

    `asker` is code that gets the folder of `kit` and the shares as arguments; `tasks` are code and its arguments. The
    tasks begin when all users have joined. Then all users ask at once, and the tasks end after them.
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
        results = [_result(process, within_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return results[:-1], results[-1]


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
    assert any(line == "ready\n" for line in process.stdout), "the process ended early"


def _result(process: subprocess.Popen[str], within_s: float) -> dict[str, Any]:
    """End the input of the process, and return its output."""
    printed, _ = process.communicate(timeout=within_s)
    assert process.returncode == 0
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def most_at_once(uses: Iterable[tuple[T, float, float, float]]) -> dict[T, float]:
    """Return the largest sum of shares at one moment for each thing, from uses (thing, share, began, ended)."""
    uses_of = defaultdict(list)
    for thing, share, began, ended in uses:
        uses_of[thing].append((share, began, ended))
    return {
        thing: max(
            sum(share for share, began, ended in its if began <= moment < ended) for _, moment, _ in its
        )
        for thing, its in uses_of.items()
    }
