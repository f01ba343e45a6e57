"""The steps of a start, their repetition, and their undoing after a failure."""

from __future__ import annotations

import asyncio
import gc
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from kit.fakes.scheduler import FakeAgent, fake_world, scheduler_on
from roost.launchers.protocol.messages import KernelProcess, Reserve
from roost.placement import Decision, Node, Snapshot, get_policy
from roost.placement.model import Request
from roost.scheduler.backends.agent_calls import Agents
from roost.scheduler.backends.base import Lease
from roost.scheduler.backends.local.settings import RoostLocalBackend
from roost.scheduler.config.settings import Settings
from roost.scheduler.core import lease_claim
from roost.scheduler.core.backend_access import BackendAccess
from roost.scheduler.errors import (
    BackendUnavailable,
    Cancelled,
    ConfigError,
    KernelDied,
    LaunchError,
    LaunchTimeout,
    LimitExceeded,
    NoNodeEver,
    NoNodeNow,
    RoostError,
    UnknownKernel,
)
from roost.testing import FakePodCluster
from roost.testing.deadlines import allow_s


async def test_a_start_goes_through_its_steps_and_says_so(tmp_path: Path) -> None:
    async with fake_world(tmp_path, gpus=1) as w:
        kernel = await w.start("k", gpus=0.5, cpus=1)
        assert (kernel.state, kernel.node_id, kernel.device_ids) == ("running", "here", ("0",))
        assert kernel.connection is not None
        assert kernel.connection.shell_port == 50_000
        assert [event.kind for event in w.events] == ["placed", "leased", "running"]
        assert {"queued", "placed", "leased", "launched"} <= kernel.timing_ms.keys()
        assert w.leases() == ["roost:k:s/1"]


async def test_labels_taints_and_what_is_warm_decide(tmp_path: Path) -> None:
    local = RoostLocalBackend(labels={"zone": "a"}, taints=["lab"])
    cold, warm = (FakeAgent(tmp_path / name, name=name) for name in ("cold", "warm"))
    warm.warm = ("kernel",)  # argv[0] of the kernels that are started here
    async with scheduler_on([cold, warm], local=local) as w:
        with pytest.raises(NoNodeEver, match="lack a label asked for"):
            await w.start("k1", labels={"disk": "ssd"}, tolerates=("lab",))
        with pytest.raises(NoNodeEver, match="are kept for others"):
            await w.start("k2")
        with pytest.raises(NoNodeEver, match="could ever hold 1 licence: 2 of 2 nodes have too little of a"):
            await w.start("k2", "2", resources={"licence": 1}, tolerates=("lab",))
        asked = {
            "labels": {"zone": "a"},
            "near": {"disk": "ssd"},
            "tolerates": ("lab",),
            "policy": "balanced",
        }
        kernel = await w.start("k3", **asked)
        assert (kernel.node_id, kernel.request) == ("warm", Request(**asked, owner="ada"))
        nodes = {node["id"]: node for node in await w.scheduler.nodes()}
        assert nodes["warm"]["warm"] == ["kernel"]
        assert (nodes["cold"]["labels"], nodes["cold"]["taints"]) == ({"zone": "a"}, ["lab"])
    for fake in (cold, warm):
        await fake.close()


async def test_events_and_lists_carry_neither_keys_nor_environment(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        await w.start("k")
        assert "hush" not in repr(w.events) + repr(w.scheduler.kernels())


async def test_a_repeated_start_gets_the_same_kernel(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        first, joined = await asyncio.gather(w.start("k"), w.start("k"))
        later = await w.start("k")
        assert first == joined == later
        assert len(w.agent.launched) == 1


async def test_a_start_calls_its_agent_twice(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        w.agent.calls.clear()
        assert (await w.start("k")).state == "running"
        assert [call for call in w.agent.calls if call in ("reserve", "launch")] == ["reserve", "launch"]
        assert [launch.kernel_id for launch in w.agent.launched] == ["k"]


async def test_a_repeated_start_that_failed_is_told_the_same(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        w.agent.fail("launch", "kernel_died")
        for _ in range(2):
            with pytest.raises(KernelDied):
                await w.start("k")
        assert w.agent.calls.count("launch") == 1
        w.agent.failures.clear()
        assert (await w.start("k", "2")).state == "running"


@pytest.mark.parametrize(
    ("kind", "error"), [("kernel_died", KernelDied), ("bad_command", LaunchError), ("no_space", LaunchError)]
)
async def test_a_launch_that_fails_gives_the_lease_back(
    tmp_path: Path, kind: str, error: type[RoostError]
) -> None:
    async with fake_world(tmp_path) as w:
        w.agent.fail("launch", kind)
        with pytest.raises(error):
            await w.start("k", cpus=1)
        assert w.leases() == []
        assert w.scheduler.kernels() == []
        assert w.kernel("k").reason == f"launch fails: {kind}"
        assert w.count("failed") == 1


async def test_an_end_before_the_agent_was_connected_is_not_missed(tmp_path: Path) -> None:
    """A pod starts its kernel before the scheduler asks for it. The scheduler's launch then finds an ended kernel."""
    async with fake_world(tmp_path) as w:
        w.agent.kernels["k"] = KernelProcess(
            kernel_id="k", launch_id="1", lease_id="", pid=7, process_started_at=1.0, how="forked",
            connection=None, launched_at=0.0, is_running=False, exit_code=7, reason="the kernel exited with code 7",
        )  # fmt: skip
        await w.start("k")
        await w.told("exited", "k")
        assert (w.kernel("k").state, w.kernel("k").exit_code) == ("exited", 7)


async def test_a_conflict_is_placed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_claim, "_SKIP_S", (1_000.0, 1_000.0))
    async with fake_world(tmp_path, nodes=("a", "b"), cpus=4) as w:
        w.fakes[0].ledger.cpus = 0.0  # its agent knows better than the picture
        w.backend.lies["a"] = lambda node: replace(node, cpus=8.0)
        kernel = await w.start("k", cpus=2)
        assert kernel.node_id == "b"
        assert w.count("conflict") == 1


async def test_a_node_that_refused_is_tried_again_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_claim, "_SKIP_S", (1_000.0, 1_000.0))
    async with fake_world(tmp_path, cpus=4) as w:
        await w.start("first", cpus=2)
        w.backend.lies["here"] = lambda node: replace(node, cpus=8.0)
        second = w.start("second", cpus=3)
        await w.told("conflict")
        await w.told("queued", "second")
        assert "refused this request a moment ago: " in w.kernel("second").waits_for
        assert w.count("conflict") == 1
        w.agent.ledger.cpus = 8.0
        await w.scheduler.stop("first", 0)
        assert (await second).state == "running"


async def test_a_node_that_refused_is_tried_again_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.scheduler.core.lease_claim._SKIP_S", (0.05, 0.2))
    async with fake_world(tmp_path, cpus=4) as w:
        w.agent.ledger.cpus = 0.0  # the picture is ahead of it, and will not change
        start = w.start("k", cpus=2)
        for _ in range(4):
            await w.told("conflict")
        w.agent.ledger.cpus = 4.0
        assert (await start).state == "running"
        assert w.count("conflict") <= 6


async def test_what_fits_nowhere_fails_at_once(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        with pytest.raises(NoNodeEver, match=r"hold 1 GPU .*; waiting does not help: ask for less, or"):
            await w.start("k", gpus=1)
        with pytest.raises(ConfigError, match="unknown policy"):
            await w.start("k", "3", policy="nonsense")
        assert w.scheduler.kernels() == []


MINE = get_policy("pack")


async def test_modules_are_imported_for_the_operator_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("roost.scheduler.policies.sandbox.LOAD_S", allow_s(60.0))
    (tmp_path / "evil.py").write_text("raise SystemError('was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    policies = {"mine": f"{__name__}:MINE", "broken": "evil:POLICY"}
    settings = Settings(policies=policies, default_policy=f"{__name__}:MINE")
    async with fake_world(tmp_path / "w", settings=settings) as w:
        with pytest.raises(ConfigError, match="'evil:POLICY' names a file or module: only the operator can"):
            await w.start("k", policy="evil:POLICY")
        with pytest.raises(ConfigError, match=r"policy broken cannot be loaded .SystemError: was imported"):
            await w.start("k", "2", policy="broken")
        for number, name in enumerate(("", "mine", "spread")):
            assert (await w.start(f"k{number}", policy=name)).state == "running"


def count_alive(*kinds: type) -> Counter[type]:
    gc.collect()
    return Counter(type(one) for one in gc.get_objects() if type(one) in kinds)


async def test_starts_that_wait_keep_neither_decisions_nor_snapshots(tmp_path: Path) -> None:
    """Thousands of starts may wait, and each decision or snapshot is as large as the cluster."""
    async with fake_world(tmp_path, cpus=1) as w:
        await w.start("first", cpus=1)
        before = count_alive(Decision, Snapshot)
        waiting = [
            w.start(f"k{number}", cpus=1 - number / 100, launch_timeout_s=60.0) for number in range(30)
        ]
        queue = w.scheduler._table.queue
        await w.until(lambda: sum(bool(ticket.waits_for) for ticket in queue.heads()) == len(waiting))
        more = count_alive(Decision, Snapshot)
        more.subtract(before)
        assert max(more.values()) < 10
        for start in waiting:
            start.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_the_queue_has_a_time_limit_of_its_own(tmp_path: Path) -> None:
    async with fake_world(tmp_path, cpus=1) as w:
        await w.start("first", cpus=1)
        waiting = w.start("second", cpus=1, launch_timeout_s=5.0, queue_timeout_s=30.0)
        with pytest.raises(NoNodeNow, match=r"waited 0\.2 s at position 2"):
            await w.start("third", cpus=1, queue_timeout_s=0.2)
        await w.scheduler.stop("first", 0.0)
        assert (await waiting).state == "running"
        assert w.agent.launched[-1].deadline_s <= 5.0


async def test_each_launch_is_prepared_and_gets_the_variables_of_its_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_world(tmp_path) as w:
        prepared: list[str] = []

        async def prepare(lease: Lease) -> Mapping[str, str]:
            prepared.append(lease.state)
            return {"PREPARED": str(len(prepared))}

        monkeypatch.setattr(w.backend, "environment", prepare)
        await w.start("k", "1")
        w.agent.end("k")
        await w.told("exited")
        await w.start("k", "2")
        assert prepared == ["held", "held"]
        assert [launch.env["PREPARED"] for launch in w.agent.launched] == ["1", "2"]


async def test_a_launch_that_cannot_be_prepared_ends_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_world(tmp_path, nodes=("a", "b")) as w:

        async def prepare(lease: Lease) -> Mapping[str, str]:
            raise LaunchError("its prologue fails.")

        monkeypatch.setattr(w.backend, "environment", prepare)
        with pytest.raises(LaunchError, match="its prologue fails"):
            await w.start("k")
        assert w.leases() == []
        assert w.count("placed") == 1


async def test_a_launch_whose_preparation_takes_too_long_is_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_world(tmp_path) as w:

        async def prepare(lease: Lease) -> Mapping[str, str]:
            await asyncio.sleep(60)
            return {}

        monkeypatch.setattr(w.backend, "environment", prepare)
        with pytest.raises(LaunchTimeout, match=r"did not start within 0\.2 s"):
            await w.start("k", launch_timeout_s=0.2)
        assert w.leases() == []


async def test_stop_gives_the_lease_back_and_may_be_repeated(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        await w.start("k", cpus=1)
        first = await w.scheduler.stop("k", 1.0)
        assert (first.state, first.exit_code, first.reason) == ("exited", -15, "stopped")
        assert await w.scheduler.stop("k", 1.0) == first
        assert w.leases() == []
        with pytest.raises(UnknownKernel):
            await w.scheduler.stop("nobody", 1.0)


async def test_a_kernel_that_waits_has_no_log_yet_and_says_why(tmp_path: Path) -> None:
    async with fake_world(tmp_path, cpus=1) as w:
        await w.start("k", cpus=1)
        waiting = w.start("w", cpus=1)
        await w.until(lambda: any(kernel.waits_for for kernel in w.scheduler.kernels()))
        with pytest.raises(
            UnknownKernel, match="kernel w has not started yet: no node has room now for 1 CPU"
        ):
            await w.scheduler.logs("w", 100)
        await w.scheduler.cancel("w")
        with pytest.raises(Cancelled):
            await waiting


async def test_a_draining_node_takes_nothing_new(tmp_path: Path) -> None:
    async with fake_world(tmp_path, nodes=("a", "b")) as w:
        await w.scheduler.drain("a", True)
        assert {(await w.start(f"k{i}", cpus=0.1)).node_id for i in range(3)} == {"b"}
        assert [node["is_draining"] for node in await w.scheduler.nodes()] == [True, False]
        with pytest.raises(ConfigError):
            await w.scheduler.drain("c", True)


async def test_what_drains_is_remembered(tmp_path: Path) -> None:
    async with fake_world(tmp_path, nodes=("a", "b")) as w:
        drained = tmp_path / "drained.json"
        access = BackendAccess(w.backend, Agents(), drained)
        access.drain("a", True)
        access.drain("gone", True)
        successor = BackendAccess(w.backend, Agents(), drained)
        snapshot = await successor.snapshot()
        assert [snapshot.node(name).is_draining for name in snapshot.nodes] == [True, False]
        successor.drain("gone", False)
        assert BackendAccess(w.backend, Agents(), drained).draining == {"a"}


async def test_the_log_of_an_ended_kernel_is_found_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        await w.start("abcdef")
        w.agent.kernels["abcdef"] = replace(w.agent.kernels["abcdef"], log_tail="last words")
        await w.scheduler.stop("abcdef", 0)
        assert await w.scheduler.logs("abc", 100) == "last words"
        with pytest.raises(UnknownKernel):
            await w.scheduler.logs("", 100)


async def test_a_start_after_reading_back_asks_for_its_own_policy(tmp_path: Path) -> None:
    """The lease holds the whole request, with its policy. The start can be placed again even if the lease is gone."""
    agent = FakeAgent(tmp_path)
    async with scheduler_on([agent]) as w:
        release = w.agent.hold("launch")
        w.start("k", cpus=1, policy="pack")
        await w.told("leased")
    async with scheduler_on([agent]) as w:
        agent.ledger.release("roost:k:s/1")
        agent.held.clear()
        release.set()
        kernel = await w.start("k", cpus=1, policy="pack")
        assert (kernel.state, kernel.request.policy) == ("running", "pack")
    await agent.close()


async def test_restarts_that_fail_again_and_again_keep_the_lease(tmp_path: Path) -> None:
    async with fake_world(tmp_path) as w:
        await w.start("k", cpus=1)
        w.agent.end("k")
        await w.told("exited")
        w.agent.fail("launch", "kernel_died")
        for launch_id in ("2", "3", "4"):
            with pytest.raises(KernelDied):
                await w.start("k", launch_id)
        assert w.leases() == ["roost:k:s/1"]
        w.agent.failures.clear()
        assert (await w.start("k", "5")).state == "running"


async def test_who_waits_goes_on_waiting_while_the_cluster_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> Snapshot:
        raise BackendUnavailable("the cluster is away")

    monkeypatch.setattr(lease_claim, "_AWAY_S", 0.01)
    async with fake_world(tmp_path, gpus=1) as w:
        await w.start("first", gpus=1)
        waiting = w.start("waits", gpus=1)
        await w.told("queued", "waits")
        with monkeypatch.context() as patched:
            patched.setattr(w.backend, "snapshot", away)
            await w.scheduler.stop("first", 0)
            await w.until(lambda: w.kernel("waits").waits_for == "the cluster is away")
            with pytest.raises(BackendUnavailable, match="is away"):
                await w.start("late", cpus=1)
            later = w.start("of an ended service", cpus=1, asked_at=time.time())
            await w.told("queued", "of an ended service")
            assert w.kernel("of an ended service").waits_for == "the cluster is away"
            assert not waiting.done()
        assert (await waiting).state == "running"
        assert (await later).state == "running"


async def test_the_kernel_of_a_start_that_was_taken_back_ends_when_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier scheduler had sent the launch to an agent that hung. Then the cluster was away."""

    async def away() -> Snapshot:
        raise BackendUnavailable("the cluster is away")

    agent = FakeAgent(tmp_path / "agent")
    settings = Settings(claim_grace_s=1000.0)
    async with scheduler_on([agent], folder=tmp_path, settings=settings) as w:
        with monkeypatch.context() as patched:
            patched.setattr(w.backend, "snapshot", away)
            waiting = w.start("k", cpus=1, asked_at=time.time())
            await w.told("queued", "k")
            kernel = w.kernel("k")
            await w.scheduler.stop("k", 0)
            with pytest.raises(Cancelled):
                await waiting
        lease_id = w.scheduler._table.lease_id("k", kernel.launch_id)
    lease = Lease(id=lease_id, kernel_id="k", node_id="here", request=kernel.request, owner=kernel.owner)
    agent.ledger.reserve(Reserve(lease=lease, linger_s=1000.0, is_granted=True))
    async with scheduler_on([agent], folder=tmp_path, settings=settings) as w:
        await w.told("released", "k")
        assert agent.held_leases() == []
    await agent.close()


async def test_who_waits_goes_on_waiting_for_a_node_that_has_left_lately(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an outage, nodes come back one by one. A new start is refused."""
    left = {"b": 20.0}
    monkeypatch.setattr(lease_claim, "_LEFT_S", 0.01)
    async with fake_world(tmp_path) as w:
        monkeypatch.setattr(w.backend, "left_nodes", lambda *_: left)
        waits = w.start("waits", labels={"on": "b"}, asked_at=time.time())
        await w.told("queued", "waits")
        assert w.kernel("waits").waits_for.endswith("; lately left the cluster: b 20 s ago")
        with pytest.raises(NoNodeEver, match="Start it again when it is back"):
            await w.start("new", labels={"on": "b"})
        assert not waits.done()
        left.clear()
        with pytest.raises(NoNodeEver, match="waiting does not help"):
            await waits


async def test_a_start_whose_lease_is_lost_with_the_manager_waits_for_the_manager(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can neither give the lost lease back nor take another one until the manager answers again."""

    async def away(*_: object) -> None:
        raise BackendUnavailable("the engine does not answer")

    monkeypatch.setattr(lease_claim, "_AWAY_S", 0.01)
    pods = FakePodCluster(tmp_path, [Node(id="a", cpus=4)], pending_reason="its image is pulled")
    async with scheduler_on([], pods=pods) as w:
        waiting = w.start("k", cpus=1)
        await w.until(lambda: bool(pods._pods))
        with monkeypatch.context() as patched:
            patched.setattr(pods, "delete", away)
            patched.setattr(w.backend, "snapshot", away)
            pods.pending_reason = ""
            await pods.end("roost:k:s/1", "the engine was killed")
            await asyncio.sleep(0.1)  # a few attempts
        assert (await waiting).state == "running"
        await w.scheduler.stop("k", 0.0)


@pytest.mark.parametrize("is_restart", [False, True])
@pytest.mark.parametrize("is_agent_first", [False, True])
@pytest.mark.parametrize("is_shown_without_node", [False, True])
async def test_a_start_whose_node_leaves_goes_on_with_another_node(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    is_restart: bool,
    is_agent_first: bool,
    is_shown_without_node: bool,
) -> None:
    """The end of the agent may be noticed before the end of its node, or after it."""
    async with fake_world(tmp_path, nodes=("a", "b")) as w:
        release = w.backend.release

        async def release_where_it_was(lease: Lease) -> None:
            await release(replace(lease, node_id=lease.node_id or "a"))

        monkeypatch.setattr(w.backend, "release", release_where_it_was)
        await w.scheduler.drain("b")
        if is_restart:
            await w.start("k", cpus=1)
            w.agent.end("k")
            await w.told("exited", "k")
            w.agent.calls.clear()
        launch = w.agent.hold("launch")
        starting = w.start("k", "2", cpus=1)
        await w.agent.called("launch")
        await w.scheduler.drain("b", on=False)
        await w.scheduler.drain("a")
        if is_agent_first:
            w.agent.fail("launch", "unknown_kernel")
            launch.set()
            await asyncio.sleep(0.1)
        lost = replace(w.scheduler._table.records["k"].lease, state="lost", reason="its node has left")
        if is_shown_without_node:
            lost = replace(lost, node_id="")
        else:
            monkeypatch.setattr(w.backend, "left_nodes", lambda *_: {"a": 0.1})
        w.backend.book.show(lost)
        kernel = await starting
        assert (kernel.state, kernel.node_id) == ("running", "b")
        assert [event.detail for event in w.events if event.kind == "conflict"] == [
            "its node a has left the cluster"
        ]
        launch.set()
        await w.scheduler.stop("k", 0.0)
        assert w.leases() == []


async def test_a_zygote_is_made_where_a_kernel_with_the_request_would_go(tmp_path: Path) -> None:
    async with fake_world(tmp_path, nodes=("a", "b"), gpus=1) as w:
        kernel = await w.start("k", gpus=1)
        await w.scheduler.warm(("python",), {}, request=Request(gpus=1))
        assert {fake.name: "warm" in fake.calls for fake in w.fakes} == {
            "a": kernel.node_id == "b",
            "b": kernel.node_id == "a",
        }
        await w.start("other", gpus=1)
        with pytest.raises(NoNodeNow):
            await w.scheduler.warm(("python",), {}, request=Request(gpus=1))
        await w.scheduler.warm(("python",), {})


async def test_a_start_of_an_ended_service_keeps_its_time(tmp_path: Path) -> None:
    async with fake_world(tmp_path, gpus=1) as w:
        await w.start("first", gpus=1)
        asked_at = time.time() - 20.0
        late = w.start("late", gpus=1, launch_timeout_s=30.0, asked_at=asked_at)
        await w.told("queued", "late")
        assert w.kernel("late").created_at == asked_at
        with pytest.raises(NoNodeNow, match="waited 30 s"):
            await asyncio.wait_for(late, allow_s(30))


async def test_a_start_that_the_next_service_does_not_allow_is_told_to_all(tmp_path: Path) -> None:
    """It has waited at an earlier service, so that people know it."""
    async with fake_world(tmp_path, gpus=4, settings=Settings(max_gpus_per_user=1)) as w:
        for asked_at in (0.0, time.time()):
            with pytest.raises(LimitExceeded):
                await w.start("k", gpus=2, asked_at=asked_at)
            assert w.count("failed", "k") == (1 if asked_at else 0)
        assert "max_gpus_per_user allows 1 GPU" in w.kernel("k").reason
        assert w.scheduler.kernels() == []
