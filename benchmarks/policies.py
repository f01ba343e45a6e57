"""What foreign policies cost: those that decide, and those that misbehave beside the starts of another user.

decision    a shipped policy in the service (`pack`), and the same policy as a foreign one in its own process, on
            1,000 and 10,000 nodes of which one has changed
start       start_kernel() called → first reply, while nothing else runs (`calm`), and while another user has just
            asked a policy that misbehaves (`beside KIND`). Each start meets a policy that was not asked before,
            0.3 s after its request, so that the policy is past its free time
end         SIGTERM → the end of the service, while a policy holds its interpreter

Claims: a foreign decision ≤ 5 ms; a start beside each kind ≤ 1.2 × calm; end ≤ 5,000 ms; no decision of a shipped
policy falls back.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Awaitable, Callable
from functools import partial

import psutil
from claims import Report, interleave, parser
from local_kernels import time_start
from page_tables import PageTable

import roost
from roost.bench.world import (
    ROOST,
    elapsed_ms,
    name_part,
    private_world,
    processes,
    wait_until_forked,
    write_config,
)
from roost.placement import Device, Node, Request, Snapshot
from roost.scheduler.config.settings import Settings
from roost.scheduler.policies.catalog import PolicyCatalog
from roost.scheduler.policies.recent_requests import RecentRequests

POLICIES = """
import ctypes, os, re, sys, threading, time
from roost.placement import NOWHERE, get_policy

class Policy:
    name = "harmful"
    def __init__(self):
        self.pack = get_policy("pack")
    def place(self, request, snapshot, *, avoid=NOWHERE):
        self.harm(snapshot)
        return self.pack.place(request, snapshot, avoid=avoid)

class Sleep(Policy):
    def harm(self, snapshot): time.sleep(1_000)
class Loop(Policy):
    def harm(self, snapshot):
        while True: pass
class Pattern(Policy):
    def harm(self, snapshot): re.match(r"(a|a)*$", "a" * 64 + "b")
class Interpreter(Policy):
    def harm(self, snapshot): ctypes.PyDLL(None).sleep(1_000)
class Memory(Policy):
    def harm(self, snapshot):
        kept = []
        while True: kept.append(bytearray(1 << 24))
class Forks(Policy):
    def harm(self, snapshot):
        for _ in range(6): os.fork()  # 64 processes
        while True: pass
class Exit(Policy):
    def harm(self, snapshot): os._exit(3)
class Threads(Policy):
    def harm(self, snapshot):
        def spin():
            while True: pass
        for _ in range(8): threading.Thread(target=spin, daemon=True).start()
class Write(Policy):
    def harm(self, snapshot):
        vars(snapshot)["_pages"] = ()
        snapshot.columns.cpus_free[:] = 1e9
class Recursion(Policy):
    def harm(self, snapshot): self.harm(snapshot)
class Lock(Policy):
    def harm(self, snapshot):
        lock = threading.Lock()
        lock.acquire(), lock.acquire()
"""
KINDS = {
    "a sleep": "Sleep",
    "an endless loop": "Loop",
    "a regular expression that backtracks": "Pattern",
    "a C call that holds the interpreter": "Interpreter",
    "endless memory": "Memory",
    "64 processes": "Forks",
    "os._exit": "Exit",
    "threads that spin": "Threads",
    "writing to the snapshot": "Write",
    "endless recursion": "Recursion",
    "a lock held": "Lock",
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


def measure_beside(kind: str, rounds: int) -> Callable[[], Awaitable[dict[str, float]]]:
    turns = iter(range(rounds + 1))

    async def measure() -> dict[str, float]:
        client, name = roost.connect("local"), f"{KINDS[kind]}-{next(turns)}"
        assert not await client.check_policies([name])  # loads it
        asked = asyncio.ensure_future(asyncio.to_thread(client.explain(Request(policy=name)).result, 60))
        found = await measure_calm(kind)
        assert (await client.explain(Request(policy="pack")))["fallback"] is None
        await asked
        return found

    return measure


async def measure_end() -> float:
    """Return the milliseconds from SIGTERM to the end of the service, while a policy holds its interpreter."""
    client = roost.connect("local")
    client.explain(Request(policy="Interpreter-end"))
    await asyncio.sleep(0.5)
    (service,) = [
        process
        for process in processes(os.environ["ROOST_RUNTIME_DIR"])
        if name_part(process.cmdline()) == "service"
    ]
    began = time.perf_counter()
    service.send_signal(signal.SIGTERM)
    await asyncio.to_thread(psutil.wait_procs, [service], 60)
    return elapsed_ms(began)


async def measure(arguments: Namespace) -> Report:
    rounds = arguments.rounds or (1 if arguments.quick else 10)
    report = Report("policies", rounds=rounds)
    for count in NODES:
        await measure_decisions(report, count, 20 * rounds)
        report.claim(f"decision {count}/foreign", at_most=5.0)
    await wait_until_forked("kernel")
    for kind in KINDS:
        cases = {"calm": partial(measure_calm, kind), "beside": measure_beside(kind, rounds)}
        await interleave(report, cases, rounds=rounds, warm_up=1)
        ratio = f"start beside {kind}"
        report.ratio(ratio, f"start, {kind}/beside", f"start, {kind}/calm")
        report.claim(ratio, at_most=1.2)
    report.add("end/roost", await measure_end(), "ms")
    report.claim("end/roost", at_most=5_000.0)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each kind (default 10, quick 1)")
    arguments = options.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 10)
    with private_world({"kernel": ROOST}) as root:
        file = root / "harmful.py"
        file.write_text(POLICIES)
        named = {
            f"{name}-{turn}": f"{file}:{name}"
            for name in KINDS.values()
            for turn in [*range(rounds + 1), "end"]
        }
        write_config(root, {"RoostScheduler": {"policies": named}})
        report = asyncio.run(measure(arguments))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
