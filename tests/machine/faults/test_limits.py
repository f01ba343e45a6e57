"""Kernels start and stop and agents are killed, again and again: no control group is left.

ROOST_LIMIT_ROUNDS is the number of rounds, by default 25. 500 rounds take two minutes.
"""

from __future__ import annotations

import os
import random
from functools import partial
from pathlib import Path

import pytest

from kit.machine import control_groups
from kit.machine.daemons import daemon_pids, kill, settle
from kit.machine.tiny_kernel import tiny
from roost.scheduler.client.client import connect
from roost.scheduler.errors import RoostError
from roost.testing.deadlines import allow_s, until_blocking

ROUNDS = int(os.environ.get("ROOST_LIMIT_ROUNDS", "25"))
SEED = int(os.environ.get("ROOST_LIMIT_SEED", "1"))


@pytest.mark.skipif(bool(control_groups.why_not()), reason=control_groups.why_not())
@pytest.mark.timeout(600 + ROUNDS)
def test_starts_stops_and_killed_agents_leave_no_control_group(settled_runtime_dir: Path) -> None:
    chance = random.Random(SEED)
    client = connect("local")
    held: list[str] = []
    killed = failed = 0
    for _ in range(ROUNDS):
        try:
            start = client.start(tiny(cpus=0.01, memory_bytes=64 << 20))
            if chance.random() < 0.3 and (pids := daemon_pids(settled_runtime_dir, "agent")):
                kill(pids[0])
                killed += 1
            held.append(start.result(allow_s(60)).id)
            while held and chance.random() < 0.6:
                client.stop(held.pop(chance.randrange(len(held))), grace_s=chance.choice([0, 1])).result(
                    allow_s(60)
                )
        except RoostError:  # the start that was under way when its agent was killed
            failed += 1
    print(f"{ROUNDS} starts, {killed} killed agents, {failed} failed starts, {len(held)} kernels left")
    for kernel in client.kernels().result(allow_s(60)):
        client.stop(kernel.id, grace_s=0).result(allow_s(60))
    groups = partial(control_groups.lease_groups, settled_runtime_dir)
    # The next agent ends those of a killed one.
    until_blocking(lambda: not groups(), lambda: f"no control group is left: {groups()}", 10)
    settle(settled_runtime_dir)
    assert not control_groups.has_groups(settled_runtime_dir)
