"""A foreign policy runs in a process of its own: however it misbehaves, it harms neither the service nor a start."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
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
from roost.testing import deadlines
from roost.testing.deadlines import allow_s

Answer = Callable[[Request, Snapshot], Any]
LOADS_QUICKLY = Settings(policy_timeout_s=60.0)
"""With it, a process loads in much less time than a question may wait."""
PACK = get_policy("pack")


@pytest.fixture(autouse=True)
def _short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_RESTS_S", (0.05, 0.1))
    monkeypatch.setattr(sandbox, "LOAD_S", allow_s(60))


async def test_a_good_policy_decides_and_is_named() -> None:
    async with policies(mine=placed("small", "0")) as found:
        decision = await found.decide("mine", HALF, CLUSTER)
        assert (decision.placement, decision.policy, decision.fallback) == (
            Placement(node_id="small", device_ids=("0",), score=1.0),
            "mine",
            None,
        )
        assert decision.snapshot_version == CLUSTER.version


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *_: sys.exit("bye"), "SystemExit: bye"),
        (lambda *_: next(iter(())), "StopIteration"),
        (lambda *_: "small", "TypeError: place gave str, not a Decision"),
    ],
)
async def test_a_bad_policy_is_named_and_balanced_ranks(
    answer: Answer, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    async with policies(mine=Always(answer)) as found:
        assert await fallback_of(found) == f"ranked by balanced, since policy mine failed ({says})"
        await fallback_of(found)  # and again
    written = capfd.readouterr().err
    assert written.count("policy=mine failed") == 2
    assert written.count("Traceback") == 1


class Noting:
    """A scorer that writes the thread and process which call it to a file."""

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
    """The process gets what has changed since the last question. A policy sees the same snapshot as the service."""
    one = CLUSTER
    changed = Node(id="small", cpus=8, memory_bytes=2**33, kernels=3, metrics_age_s=1)
    two = one.apply([changed, Node(id="new", cpus=2)], removed=["full"]).older_by(5)
    three = two.apply([Node(id="new", cpus=3, metrics_age_s=0)])

    def tell(request: Request, snapshot: Snapshot) -> Any:
        nodes = [snapshot.node(node_id).to_dict() for node_id in snapshot.nodes]
        free = snapshot.columns.cpus_free.tolist()
        raise RuntimeError(zlib.crc32(repr((nodes, free, snapshot.columns.metrics_age_s.tolist())).encode()))

    async with policies(mine=Always(tell)) as found:
        for snapshot in (one, two, two, three, one):
            with pytest.raises(RuntimeError) as told:
                tell(HALF, snapshot)
            found.failed.clear()
            await found.decide("mine", HALF, snapshot)
            assert found.failed["mine"] == f"failed (RuntimeError: {told.value})"


def hold_the_interpreter(*_: object) -> Any:
    ctypes.PyDLL(None).sleep(1_000)  # a C call that never lets go of the interpreter


def backtrack(*_: object) -> Any:
    return re.match(r"(a|a)*$", "a" * 64 + "b")


def take_memory(*_: object) -> Any:
    return bytearray(20 << 30)


def fork(*_: object) -> Any:
    for _ in range(6):
        with suppress(OSError):
            os.fork()
    time.sleep(1_000)


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
    return Decision(request=request, policy="x", placement=Placement(node_id="small", terms=terms))


LATE = "did not answer within 1 s"
HARMFUL: dict[str, tuple[Answer, str]] = {
    "sleep": (lambda *_: time.sleep(1_000), LATE),
    "endless loop": (lambda *_: any(iter(int, 1)), LATE),
    "the interpreter held": (hold_the_interpreter, LATE),
    "regular expression": (backtrack, LATE),
    "memory": (take_memory, "failed (MemoryError)"),
    "forks": (fork, LATE),
    "exit": (lambda *_: os._exit(3), "failed (its process exited with code 3)"),
    "crash": (lambda *_: ctypes.string_at(0), "failed (its process was ended by SIGSEGV)"),
    "recursion": (recurse, "failed (RecursionError: maximum recursion depth exceeded"),
    "a lock held": (hold_a_lock, LATE),
    "a closed socket": (
        lambda *_: (os.closerange(3, 1_000), time.sleep(1_000)),
        "failed (its process closed the socket",
    ),
    "a long answer": (answer_at_length, "failed (its answer has "),
    "the snapshot written": (write_to_the_snapshot, ""),
    "threads": (start_threads, ""),
}


@pytest.mark.parametrize("kind", HARMFUL)
async def test_a_policy_cannot_hurt_others(kind: str) -> None:
    answer, says = HARMFUL[kind]
    before = CLUSTER.node("small").to_dict(), CLUSTER.columns.cpus_free.tolist()
    settings = Settings(policy_timeout_s=1 if says == LATE else allow_s(20), policy_memory=1 << 30)
    async with policies(settings, mine=Always(answer)) as found:
        group = process_of(found)
        asked = asyncio.ensure_future(found.decide("mine", HALF, CLUSTER))
        await asyncio.sleep(0)
        for name in ("balanced", "pack"):
            assert (await found.decide(name, HALF, CLUSTER)).fallback is None
        assert says in ((await asked).fallback or "")
        assert set(found.failed) <= {"mine"}
        if says == LATE:
            await until(lambda: not processes_of(group), "the end of its processes")
        else:
            again = (await found.decide("mine", HALF, CLUSTER)).fallback or ""
            assert says in again or "it is asked again in" in again
    await until(lambda: not processes_of(group), "the end of its processes")
    assert (CLUSTER.node("small").to_dict(), CLUSTER.columns.cpus_free.tolist()) == before


def process_of(found: PolicyCatalog, name: str = "mine") -> int:
    """Return the pid of a policy's process, which leads a process group and a session."""
    policy = found.get(name)
    assert isinstance(policy, sandbox.SandboxedPolicy)
    assert policy.pid is not None
    return policy.pid


def processes_of(group: int) -> list[int]:
    """Return the processes of the group that have not ended."""
    return list(states_of(group))


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


async def test_threads_of_a_policy_take_no_time_between_its_answers() -> None:
    async with policies(mine=Always(start_threads)) as found:
        pid = process_of(found)
        assert (await found.decide("mine", HALF, CLUSTER)).fallback is None
        state = Path(f"/proc/{pid}/stat")
        await until(lambda: state.read_text().rpartition(")")[2].split()[0] == "T", "a stopped process")
        assert (await found.decide("mine", HALF, CLUSTER)).fallback is None


async def count_turns(group: int, processes: int, turns: int) -> None:
    """Wait until so many processes of the group, all at once, have been stopped and have run so many times."""
    seen = list[bool]()

    def is_enough() -> bool:
        states = states_of(group)
        are_stopped = set(states.values()) == {"T"}
        is_uniform = len(states) == processes and (are_stopped or "T" not in states.values())
        if is_uniform and seen[-1:] != [are_stopped]:
            seen.append(are_stopped)
        return len(seen) >= 2 * turns

    await deadlines.until(is_enough, lambda: f"the processes take turns: {seen}", 15, 0.001)


async def test_a_slow_policy_is_stopped_again_and_again(tmp_path: Path) -> None:
    """So are its children. Then it answers, and is stopped until the next question."""
    release = tmp_path / "release"

    def is_slow(request: Request, snapshot: Snapshot) -> Decision:
        if not release.exists() and not os.fork():
            time.sleep(1_000)
        while not release.exists():
            time.sleep(0.0005)
        return PACK.place(request, snapshot)

    settings = Settings(policy_timeout_s=allow_s(20))
    async with policies(settings, mine=Always(is_slow)) as found:
        group = process_of(found)
        asked = asyncio.ensure_future(found.decide("mine", HALF, CLUSTER))
        await count_turns(group, processes=2, turns=5)
        release.touch()
        assert (await asked).fallback is None
        await until(lambda: set(states_of(group).values()) == {"T"}, "stopped processes")
        for _ in range(20):
            await asyncio.sleep(0.005)  # two turns and more
            assert set(states_of(group).values()) == {"T"}


async def test_a_policy_that_loads_for_long_is_stopped_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "_LOADS_FREE_S", 0.05)
    monkeypatch.setattr(sandbox, "LOAD_S", allow_s(60))
    loads, release = tmp_path / "loads", tmp_path / "release"

    def mine(workload: Workload) -> Always:
        loads.write_text(str(os.getpid()))
        while not release.exists():
            time.sleep(0.0005)
        return placed("small", "0")

    async with policies() as found:
        adding = asyncio.ensure_future(found.add(**given("mine", mine)))
        await until(lambda: loads.exists() and loads.read_text(), "the begin of its loading")
        await count_turns(int(loads.read_text()), processes=1, turns=5)
        release.touch()
        await adding
        assert (await found.decide("mine", HALF, CLUSTER)).fallback is None


async def test_an_honest_policy_that_is_slow_still_answers() -> None:
    """It needs a tenth of a second of processor time. On a quiet machine the deadline is the default one.

    Beside others the policy gets a part of a processor only, and a burst of load shows late in the mean.
    """

    def computes(request: Request, snapshot: Snapshot) -> Decision:
        ends_at = time.process_time() + 0.1
        while time.process_time() < ends_at:
            pass
        return PACK.place(request, snapshot)

    settings = Settings(policy_timeout_s=allow_s(Settings().policy_timeout_s))
    async with policies(settings, mine=Always(computes)) as found:
        decision = await until_it_decides(found)
        assert (decision.policy, decision.fallback) == ("mine", None)


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


async def test_an_unused_process_ends_and_the_next_question_starts_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sandbox, "_UNUSED_S", 0.05)
    async with policies(LOADS_QUICKLY, mine=placed("small", "0")) as found:
        pid = process_of(found)
        assert (await found.decide("mine", HALF, CLUSTER)).fallback is None
        await until(lambda: not processes_of(pid), "the end of its process")
        assert (await until_it_decides(found)).fallback is None


async def test_a_policy_that_was_only_checked_keeps_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_UNASKED_S", 1.0)
    async with policies(LOADS_QUICKLY, mine=placed("small", "0")) as found:
        pid = process_of(found)
        await until(lambda: not processes_of(pid), "the end of its process")
        assert (await until_it_decides(found)).fallback is None


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


async def test_a_start_falls_back_and_says_so(tmp_path: Path) -> None:
    async with fake_world(
        tmp_path,
        gpus=2,
        settings=Settings(policy_timeout_s=allow_s(20), policies={"mine": f"{__name__}:BROKEN"}),
    ) as w:
        kernel = await w.start("k", gpus=0.5, policy="mine")
        assert kernel.state == "running"
        assert kernel.decision is not None
        assert kernel.decision["policy"] == "mine"
        says = "ranked by balanced, since policy mine failed (RuntimeError: no nodes for you)"
        assert kernel.decision["fallback"] == says
        assert says in kernel.decision["reason"]
        assert any(says in event.detail for event in w.events if event.kind == "placed")


def _refuse(*_: object) -> Any:
    raise RuntimeError("no nodes for you")


BROKEN = Always(_refuse)


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
