"""What foreign policies cost: those that decide, and those that misbehave beside the starts of another user.

decision    a shipped policy in the service (`pack`), and the same policy as a foreign one in its own process, on
            1,000 and 10,000 nodes
start       start_kernel() called → first reply, while nothing else runs (`calm`), and while another user has just
            asked a policy that misbehaves (`beside KIND`). Each start begins 0.3 s after the request to the policy

No time has a bound: a policy may take the processors until its deadline. Decisions of a shipped policy never fall back.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from claims import Report, interleave, parser
from local_kernels import time_start
from page_tables import PageTable

import roost
from roost.bench.world import ROOST, elapsed_ms, private_world, wait_until_forked
from roost.placement import NOWHERE, Decision, Device, Node, Request, Snapshot, get_policy
from roost.scheduler.config.settings import Settings
from roost.scheduler.policies.catalog import PolicyCatalog
from roost.scheduler.policies.recent_requests import RecentRequests


class Harmful:
    """`pack`, which calls `harm` first."""

    name = "harmful"

    def __init__(self, harm: Callable[[Snapshot], object]) -> None:
        self._harm = harm

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        self._harm(snapshot)
        return get_policy("pack").place(request, snapshot, avoid=avoid)


def loop(_: Any = None) -> None:
    while True:
        pass


def write(snapshot: Snapshot) -> None:
    vars(snapshot)["_pages"] = ()
    snapshot.columns.cpus_free[:] = 1e9


def recurse(snapshot: Snapshot) -> None:
    recurse(snapshot)


KINDS: dict[str, Callable[[Snapshot], object]] = {
    "a sleep": lambda _: time.sleep(1_000),
    "an endless loop": loop,
    "a regular expression that backtracks": lambda _: re.match(r"(a|a)*$", "a" * 64 + "b"),
    "20 GB of memory": lambda _: bytearray(20 << 30),
    "64 processes": lambda _: ([os.fork() for _ in range(6)], loop()),
    "os._exit": lambda _: os._exit(3),
    "threads that spin": lambda _: [threading.Thread(target=loop, daemon=True).start() for _ in range(8)],
    "writing to the snapshot": write,
    "endless recursion": recurse,
    "a lock held": lambda _: threading.Semaphore(0).acquire(),
}
NODES = (1_000, 10_000)
TABLE = PageTable(
    name="policies",
    columns={"in the service": "{}/shipped", "in its process": "{}/foreign"},
    rows={f"a decision among {count:,} nodes": f"decision {count}" for count in NODES},
)
BESIDE = PageTable(
    name="policies-starts",
    columns={"calm": "{}/calm", "beside": "{}/beside"},
    rows={f"start beside {kind}": f"start, {kind}" for kind in KINDS},
    ratios={"beside ÷ calm": ("beside", "calm")},
)


async def measure_decisions(report: Report, count: int, rounds: int) -> None:
    """Add the times of decisions on a cluster of so many nodes with four GPUs, in alternating order."""
    settings = Settings(policies={"foreign": "roost.placement.shipped_policies:pack"}, policy_timeout_s=30.0)
    catalog = PolicyCatalog(settings, RecentRequests(None, clock=time.monotonic))
    devices = tuple(Device(id=str(at), model="T4") for at in range(4))
    snapshot = Snapshot.of(
        Node(id=f"n{at:06}", cpus=64, memory_bytes=2**38, devices=devices, metrics_age_s=1)
        for at in range(count)
    )
    try:
        await catalog.load("foreign")
        for turn in range(rounds + 1):
            node = snapshot.node(f"n{turn:06}")
            snapshot = snapshot.apply([node.with_kernel(Request(gpus=0.5), ("0",))])
            for side, name in (("shipped", "pack"), ("foreign", "foreign")):
                began = time.perf_counter()
                decision = await catalog.decide(name, Request(gpus=0.5, cpus=1), snapshot)
                decision.to_dict()  # a start keeps the reasons
                assert not decision.fallback, decision.fallback
                if turn:
                    report.add(f"decision {count}/{side}", elapsed_ms(began), "ms")
    finally:
        await catalog.close()


async def measure_calm(kind: str) -> dict[str, float]:
    return {f"start, {kind}": await time_start("kernel")}


async def measure_beside(kind: str) -> dict[str, float]:
    client = roost.connect("local")
    await client.add_policy("harmful", Harmful(KINDS[kind]))  # in a new process
    asked = asyncio.ensure_future(asyncio.to_thread(client.explain(Request(policy="harmful")).result, 60))
    found = await measure_calm(kind)
    assert (await client.explain(Request(policy="pack")))["fallback"] is None
    await asked
    return found


async def measure(arguments: Namespace) -> Report:
    rounds = arguments.rounds or (1 if arguments.quick else 10)
    report = Report("policies", rounds=rounds)
    for count in NODES:
        await measure_decisions(report, count, 2 * rounds)
    await wait_until_forked("kernel")
    for kind in KINDS:
        cases = {"calm": partial(measure_calm, kind), "beside": partial(measure_beside, kind)}
        await interleave(report, cases, rounds=rounds, warm_up=1)
        report.ratio(f"start beside {kind}", f"start, {kind}/beside", f"start, {kind}/calm")
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each kind (default 10, quick 1)")
    arguments = options.parse_args()
    with private_world({"kernel": ROOST}):
        report = asyncio.run(measure(arguments))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
