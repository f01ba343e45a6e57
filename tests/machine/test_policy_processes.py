"""A foreign policy runs in a process of its own: however it misbehaves, it harms neither the service nor a start."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.clusters.faults import until
from kit.fakes.client_policies import CLUSTER, HALF, Always, fallback_of, given, placed, policies
from kit.fakes.scheduler import fake_world
from roost.launchers.daemon.process import is_running, start_time
from roost.placement import Decision, Node, Pipeline, Placement, Request, Snapshot, Workload, get_policy
from roost.scheduler.config.settings import Settings
from roost.scheduler.policies import sandbox
from roost.scheduler.policies.catalog import PolicyCatalog
from roost.scheduler.policies.recent_requests import RecentRequests
from roost.testing.deadlines import allow_s

Answer = Callable[[Request, Snapshot], Any]
PACK = get_policy("pack")


@pytest.fixture(autouse=True)
def _short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_RESTS_S", (0.05, 0.1))
    monkeypatch.setattr(sandbox, "LOAD_S", allow_s(60))


def hold_the_interpreter(*_: object) -> Any:
    ctypes.PyDLL(None).sleep(1_000)  # a C call that never lets go of the interpreter


def fork(*_: object) -> Any:
    """Become 64 processes that compute without end."""
    for _ in range(6):
        os.fork()
    while True:
        pass


def recurse(*_: object) -> Any:
    return recurse()


def hold_a_lock(*_: object) -> Any:
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def start_threads(request: Request, snapshot: Snapshot) -> Decision:
    def spin() -> None:
        while True:
            pass

    for _ in range(8):
        threading.Thread(target=spin, daemon=True).start()
    return PACK.place(request, snapshot)


def write_to_the_snapshot(request: Request, snapshot: Snapshot) -> Decision:
    with suppress(ValueError):
        snapshot.columns.cpus_free[:] = 1e9
    snapshot.models = ()
    vars(snapshot)["_pages"] = ()
    return PACK.place(request, snapshot)


def answer_at_length(request: Request, snapshot: Snapshot) -> Decision:
    terms = {f"term {number}": 0.0 for number in range(200_000)}
    return Decision(request=request, policy="x", placement=Placement(node_id="here", terms=terms))


def close_the_socket(*_: object) -> Any:
    os.closerange(3, 1_000)
    time.sleep(1_000)


LATE = "did not answer within 1 s"
HARMFUL: dict[str, tuple[Answer, str]] = {
    "sleep": (lambda *_: time.sleep(1_000), LATE),
    "endless loop": (lambda *_: any(iter(int, 1)), LATE),
    "the interpreter held": (hold_the_interpreter, LATE),
    "regular expression": (lambda *_: re.match(r"(a|a)*$", "a" * 64 + "b"), LATE),
    "memory": (lambda *_: bytearray(20 << 30), "failed (MemoryError)"),
    "forks": (fork, LATE),
    "exit": (lambda *_: os._exit(3), "failed (its process exited with code 3)"),
    "crash": (lambda *_: ctypes.string_at(0), "failed (its process was ended by SIGSEGV)"),
    "recursion": (recurse, "failed (RecursionError: maximum recursion depth exceeded"),
    "a lock held": (hold_a_lock, LATE),
    "a closed socket": (close_the_socket, "failed (its process closed the socket"),
    "a long answer": (answer_at_length, "failed (its answer has "),
    "an error": (lambda *_: 1 / 0, "failed (ZeroDivisionError: division by zero"),
    "sys.exit": (lambda *_: sys.exit("bye"), "failed (SystemExit: bye"),
    "no decision": (lambda *_: "here", "failed (TypeError: place gave str, not a Decision)"),
    "the snapshot written": (write_to_the_snapshot, ""),
    "threads": (start_threads, ""),
}


@pytest.mark.parametrize("kind", HARMFUL)
async def test_a_harmful_policy_harms_no_start(kind: str, tmp_path: Path) -> None:
    """The starts of Ada go on beside Eve's policy. Eve's start gets `balanced` and the reason."""
    answer, says = HARMFUL[kind]
    settings = Settings(policy_timeout_s=1 if says == LATE else allow_s(20), policy_memory=1 << 30)
    async with fake_world(tmp_path, gpus=4, settings=settings) as w:
        found = w.scheduler.policies
        await found.add(**given("mine", Always(answer)))
        group = process_of(found)
        eves = w.start("eve", gpus=0.5, policy="mine", user="eve")
        for name in ("balanced", "pack"):
            kernel = await w.start(name, gpus=0.5, policy=name)
            assert (kernel.state, kernel.decision and kernel.decision["fallback"]) == ("running", None)
        kernel = await eves
        assert kernel.decision is not None
        fallback = kernel.decision["fallback"] or ""
        assert (kernel.state, kernel.decision["policy"]) == ("running", "mine")
        assert f"ranked by balanced, since policy mine {says}" in fallback or not says
        assert fallback in kernel.decision["reason"]
        assert any(fallback in event.detail for event in w.events if event.kind == "placed")
        assert set(found.failed) <= {"mine"}
        await until(
            lambda: not set(states_of(group).values()) - {"T"}, "the end or the stop of its processes"
        )
        if says == LATE:
            assert not states_of(group)
    assert not states_of(group)


def process_of(found: PolicyCatalog, name: str = "mine") -> int:
    """Return the pid of a policy's process, which leads a process group and a session."""
    policy = found.get(name)
    assert isinstance(policy, sandbox.SandboxedPolicy)
    assert policy.pid is not None
    return policy.pid


def states_of(group: int) -> dict[int, str]:
    """Return the state of each process of the group that has not ended, as in `ps`: `T` is stopped."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                state, _, pgid = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(pgid) == group and state not in "ZX":
                    found[int(entry.name)] = state
    return found


_SERVICE = f"""
import asyncio, sys
from kit.fakes.client_policies import CLUSTER, HALF, Always, policies
from roost.scheduler.config.settings import Settings
from roost.scheduler.policies import sandbox
from {__name__} import fork, process_of, start_a_child

sandbox.LOAD_S = 60.0

async def main(answer):
    async with policies(Settings(policy_timeout_s=1_000), mine=Always(answer)) as found:
        print(process_of(found), flush=True)
        await found.decide("mine", HALF, CLUSTER)
        await asyncio.sleep(1_000)

asyncio.run(main({{"fork": fork, "start_a_child": start_a_child}}[sys.argv[1]]))
"""


def start_a_child(request: Request, snapshot: Snapshot) -> Decision:
    """Start a program that inherits no descriptor."""
    subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
    return PACK.place(request, snapshot)


@pytest.mark.parametrize(
    ("answer", "processes", "states"), [("fork", 64, set("RSD")), ("start_a_child", 2, {"T"})]
)
async def test_no_process_of_a_policy_outlives_a_killed_service(
    answer: str, processes: int, states: set[str]
) -> None:
    """Neither processes that compute nor stopped ones, which cannot notice it."""
    path = os.pathsep.join(part for part in sys.path if part)
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVICE, answer, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE
    )
    try:
        assert service.stdout is not None
        group = int(await service.stdout.readline())
        await until(
            lambda: len(found := states_of(group)) == processes and set(found.values()) <= states,
            "the policy's processes",
        )
    finally:
        service.kill()
        await service.wait()
    await until(lambda: not states_of(group), "the end of its processes")


async def test_children_of_a_policy_end_with_its_process() -> None:
    async with policies(mine=Always(start_a_child)) as found:
        group = process_of(found)
        assert (await found.decide("mine", HALF, CLUSTER)).fallback is None
        assert len(states_of(group)) == 2
        os.kill(group, signal.SIGKILL)
        await until(lambda: not states_of(group), "the end of its processes")


async def test_a_good_policy_decides_and_is_named() -> None:
    async with policies(mine=placed("small", "0")) as found:
        decision = await found.decide("mine", HALF, CLUSTER)
        assert (decision.placement, decision.policy, decision.fallback) == (
            Placement(node_id="small", device_ids=("0",), score=1.0),
            "mine",
            None,
        )
        assert decision.snapshot_version == CLUSTER.version


async def test_the_log_has_the_stack_of_an_error_once(capfd: pytest.CaptureFixture[str]) -> None:
    async with policies(mine=Always(lambda *_: next(iter(())))) as found:
        for _ in range(2):
            assert await fallback_of(found) == "ranked by balanced, since policy mine failed (StopIteration)"
    written = capfd.readouterr().err
    assert written.count("policy=mine failed") == 2
    assert written.count("Traceback") == 1


class Noting:
    """A scorer that writes the process which calls it to a file."""

    name = "ones"
    needs_metrics = False

    def __init__(self, file: Path) -> None:
        self.file = file

    def score(self, request: Request, snapshot: Snapshot) -> Any:
        with self.file.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return np.ones(len(snapshot))


async def test_a_lazy_explanation_is_read_in_the_policys_process(tmp_path: Path) -> None:
    """A pipeline computes its explanation when it is read. The policy's process reads it, not the service."""
    calls = tmp_path / "calls"
    async with policies(mine=Pipeline(name="p", scorers=((Noting(calls), 1.0),))) as found:
        decision = await found.decide("mine", HALF, CLUSTER)
        asked = calls.read_text()
        assert decision.to_dict()["placement"]["terms"] == {"ones": 1.0}
        assert calls.read_text() == asked
        assert str(os.getpid()) not in asked.split()
        assert [refusal.node_id for refusal in decision.refusals] == ["full", "full"]


async def test_the_policy_follows_the_cluster() -> None:
    """A policy sees the same snapshot as the service."""
    one = CLUSTER
    changed = Node(id="small", cpus=8, memory_bytes=2**33, kernels=3, metrics_age_s=1)
    two = one.apply([changed, Node(id="new", cpus=2)], removed=["full"]).older_by(5)

    def tell(request: Request, snapshot: Snapshot) -> Any:
        nodes = [snapshot.node(node_id).to_dict() for node_id in snapshot.nodes]
        free = snapshot.columns.cpus_free.tolist()
        raise RuntimeError(zlib.crc32(repr((nodes, free, snapshot.columns.metrics_age_s.tolist())).encode()))

    async with policies(mine=Always(tell)) as found:
        for snapshot in (one, two, one):
            with pytest.raises(RuntimeError) as told:
                tell(HALF, snapshot)
            await found.decide("mine", HALF, snapshot)
            assert found.failed["mine"] == f"failed (RuntimeError: {told.value})"


async def test_a_policy_that_is_late_once_is_asked_again(tmp_path: Path) -> None:
    flag = tmp_path / "late"
    flag.touch()

    def late_once(request: Request, snapshot: Snapshot) -> Decision:
        if flag.exists():
            time.sleep(1_000)
        return PACK.place(request, snapshot)

    async with policies(Settings(policy_timeout_s=1), mine=Always(late_once)) as found:
        first = process_of(found)
        assert await fallback_of(found) == f"ranked by balanced, since policy mine {LATE}"
        assert found.failed == {"mine": LATE}
        flag.unlink()
        await until_it_decides(found)
        assert found.failed == {}
        assert process_of(found) != first


async def until_it_decides(found: PolicyCatalog) -> Decision:
    for _ in range(round(allow_s(300))):
        decision = await found.decide("mine", HALF, CLUSTER)
        if decision.fallback is None:
            return decision
        await asyncio.sleep(0.1)
    raise AssertionError(decision.fallback)


async def test_after_failures_a_policy_rests_longer_and_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_RESTS_S", (500.0, 1_000.0))
    async with policies(mine=Always(lambda *_: os._exit(3))) as found:
        why = "failed (its process exited with code 3)"
        assert await fallback_of(found) == f"ranked by balanced, since policy mine {why}"
        for _ in range(2):
            assert f"policy mine {why}; it is asked again in " in await fallback_of(found)


async def test_a_process_that_was_killed_is_started_again() -> None:
    async with policies(mine=placed("small", "0")) as found:
        pid = process_of(found)
        started_at = start_time(pid)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: not is_running(pid, started_at), "its end")
        assert (await until_it_decides(found)).placement is not None
        assert process_of(found) != pid


async def test_a_policy_that_was_only_checked_keeps_no_process() -> None:
    settings = Settings(policy_timeout_s=allow_s(20), policies={"mine": f"{__name__}:GOOD"})
    async with policies(settings) as found:
        assert await found.find_problems(["mine"]) == {}
        with pytest.raises(KeyError):
            found.get("mine")
        await found.load("mine")
        pid = process_of(found)
        assert await found.find_problems(["mine"]) == {}
        assert process_of(found) == pid


GOOD = placed("small", "0")


async def test_a_cancelled_call_does_not_count_as_slow(tmp_path: Path) -> None:
    called, release = tmp_path / "called", tmp_path / "release"

    def waits(request: Request, snapshot: Snapshot) -> Decision:
        called.touch()
        while not release.exists():
            time.sleep(0.01)
        return PACK.place(request, snapshot)

    async with policies(mine=Always(waits)) as found:
        pid = process_of(found)
        first = asyncio.ensure_future(found.decide("mine", HALF, CLUSTER))
        await until(called.exists, "the call")
        first.cancel()
        second = asyncio.ensure_future(found.decide("mine", HALF, CLUSTER))
        release.touch()
        assert (await second).fallback is None
        assert first.cancelled()
        assert process_of(found) == pid


async def test_a_function_gets_the_workload(tmp_path: Path) -> None:
    seen = tmp_path / "seen"

    def mine(workload: Workload) -> Always:
        with seen.open("a") as file:
            file.write(f"{workload.is_useful} ")
        return placed("small", "0")

    recent = RecentRequests(None, clock=lambda: 0.0)
    found = PolicyCatalog(Settings(policy_timeout_s=allow_s(20)), recent)
    await found.add(**given("mine", mine))
    await found.decide("mine", HALF, CLUSTER)
    for _ in range(20):
        recent.note(HALF)
    for _ in range(2):
        assert (await found.decide("mine", HALF, CLUSTER)).fallback is None
    assert seen.read_text().split()[-2:] == ["False", "True"]
    await found.close()


async def test_no_policy_over_commits(tmp_path: Path) -> None:
    """The policy always chooses one device. Later kernels get the other device, or wait."""
    insists = Always(
        lambda request, snapshot: Decision(
            request=request, policy="x", placement=Placement(node_id="here", device_ids=("0",))
        )
    )
    async with fake_world(tmp_path, gpus=2, settings=Settings(policy_timeout_s=allow_s(20))) as w:
        await w.scheduler.policies.add(**given("mine", insists))
        first, second = [await w.start(f"k{i}", gpus=1, policy="mine") for i in range(2)]
        assert (first.device_ids, second.device_ids) == (("0",), ("1",))
        assert first.decision is not None
        assert second.decision is not None
        assert first.decision["fallback"] is None
        assert "it chose device '0' of here, which is missing or not free" in second.decision["fallback"]
        third = w.start("k2", gpus=1, policy="mine")
        await w.told("queued", "k2")
        third.cancel()
