"""Policies are found by name, kept between decisions, and run in a sandbox if they do not belong to roost."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kit.fakes.client_policies import CLUSTER, HALF, Always, fallback_of, given, placed, policies
from kit.fakes.scheduler import fake_world
from roost.placement import (
    Decision,
    Pipeline,
    Placement,
    Refusal,
    Request,
    Snapshot,
    Workload,
    get_policy,
)
from roost.scheduler.config.settings import Settings
from roost.scheduler.policies.catalog import PolicyCatalog
from roost.scheduler.policies.recent_requests import RecentRequests
from roost.testing.deadlines import allow_s


async def test_a_good_policy_decides_and_is_named() -> None:
    async with policies(mine=placed("small", "0")) as found:
        decision = await found.decide("mine", HALF, CLUSTER)
        assert (decision.placement, decision.policy, decision.fallback) == (
            Placement(node_id="small", device_ids=("0",), score=1.0),
            "mine",
            None,
        )
        assert decision.snapshot_version == CLUSTER.version


BAD: dict[str, tuple[Always, str]] = {
    "raises": (Always(lambda *_: 1 / 0), r"ZeroDivisionError: division by zero"),
    "exits": (Always(lambda *_: sys.exit("bye")), r"SystemExit: bye"),
    "stops": (Always(lambda *_: next(iter(()))), r"StopIteration"),
    "no decision": (Always(lambda *_: "small"), r"TypeError: place gave str, not a Decision"),
    "nothing": (Always(lambda *_: None), r"TypeError: place gave NoneType"),
    "no such node": (placed("mars"), r"it chose 'mars', but there is no such node"),
    "node by number": (placed(7), r"it chose 7, but there is no such node"),  # type: ignore[arg-type]
    "full node": (placed("full", "0"), r"it chose full, which needs 0.5 GPU, 0 free"),
    "no such device": (
        placed("small", "9"),
        r"it chose device '9' of small, which is missing or not free",
    ),
    "device by number": (placed("small", 0), r"it chose device 0 of small"),
    "two devices": (placed("big", "0", "1"), r"it chose 2 devices \(0, 1\) for 0.5 GPU"),
    "not a number": (placed("small", "0", score=np.nan), r"its score for small is not a finite number"),
    "no reasons": (Always(lambda r, _: Decision(request=r, policy="x")), r"neither a node nor a refusal"),
    "unknown refusal": (
        Always(
            lambda r, _: Decision(
                request=r,
                policy="x",
                refusals=(Refusal(node_id="mars", filter="gpu", reason="is far", when="now"),),
            )
        ),
        r"which is not a node",
    ),
    "odd values": (placed("small", "0", metrics_age_s=object()), r"TypeError: float\(\) argument"),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_policy_is_named_and_balanced_ranks(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    bad, says = BAD[kind]
    async with policies(mine=bad) as found:
        fallback = await fallback_of(found)
        assert fallback.startswith("ranked by balanced, since policy mine failed (")
        with pytest.raises(AssertionError, match=says):
            raise AssertionError(fallback)
        await fallback_of(found)  # and again
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    assert [bool(record.exc_info) for record in errors] == [True, False]
    assert all("policy=mine failed" in record.getMessage() for record in errors)


class Ones:
    """A scorer whose scores come from a function of the test."""

    name = "ones"
    needs_metrics = False

    def __init__(self, score: Callable[[Request, Snapshot], Any]) -> None:
        self.score = score


@pytest.mark.parametrize(
    "scores",
    [
        lambda request, snapshot: np.full(len(snapshot), np.nan),
        lambda request, snapshot: np.ones(len(snapshot) + 1),
        lambda request, snapshot: np.full(snapshot.columns.device_free.shape, np.inf),
    ],
)
async def test_a_scorer_that_misbehaves_is_named(scores: Any) -> None:
    async with policies(mine=Pipeline(name="p", scorers=((Ones(scores), 1.0),))) as found:
        assert "scorer 'ones' must give one finite number per node" in await fallback_of(found)


async def test_a_lazy_explanation_is_read_in_the_policys_thread() -> None:
    """A pipeline computes its explanation when it is read. roost reads it in the policy's thread, not the caller's."""
    threads = set()

    def score(request: Request, snapshot: Snapshot) -> Any:
        threads.add(threading.current_thread())
        return np.ones(len(snapshot))

    async with policies(mine=Pipeline(name="p", scorers=((Ones(score), 1.0),))) as found:
        decision = await found.decide("mine", HALF, CLUSTER)
        asked = len(threads)
        assert decision.to_dict()["placement"]["terms"] == {"ones": 1.0}
        assert (len(threads), threading.current_thread() in threads) == (asked, False)
        assert [refusal.node_id for refusal in decision.refusals] == ["full", "full"]


async def test_a_failure_is_reported_until_the_policy_decides_again() -> None:
    answers = iter([1 / 2, None])
    good = get_policy("pack")
    mine = Always(lambda request, snapshot: next(answers, 0) or good.place(request, snapshot))
    async with policies(mine=mine) as found:
        await fallback_of(found)
        assert found.failed == {"mine": "failed (TypeError: place gave float, not a Decision)"}
        assert (await found.decide("mine", HALF, CLUSTER)).fallback is None
        assert found.failed == {}


async def test_a_slow_policy_delays_no_start_and_is_asked_again_after_its_answer() -> None:
    release, answered = threading.Event(), threading.Event()

    def slowly(request: Request, snapshot: Snapshot) -> Decision:
        release.wait(allow_s(20))
        answered.set()
        return get_policy("pack").place(request, snapshot)

    slow = Always(slowly)
    settings = Settings(policy_timeout_s=0.05)
    async with policies(settings, mine=slow) as found:
        fallbacks = await asyncio.gather(*(fallback_of(found) for _ in range(3)))
        assert fallbacks[0] == "ranked by balanced, since policy mine did not answer within 0.05 s"
        assert all("and is not asked until it does" in text for text in fallbacks[1:])
        assert slow.asked == 1
        assert (await found.decide("pack", HALF, CLUSTER)).fallback is None
        release.set()
        answered.wait(allow_s(20))
        decision = await found.decide("mine", HALF, CLUSTER)
        while decision.fallback:  # the thread of the slow call is about to end
            decision = await found.decide("mine", HALF, CLUSTER)
        assert slow.asked >= 2


async def test_a_hanging_policy_is_asked_once_until_it_is_added_again() -> None:
    release = threading.Event()
    hangs, once = Always(lambda *_: release.wait(allow_s(30))), placed("small", "0")
    async with policies(Settings(policy_timeout_s=0.3), mine=hangs) as found:
        for _ in range(5):
            await fallback_of(found)
        assert hangs.asked == 1
        await found.add(**given("mine", once))
        while (await found.decide("mine", HALF, CLUSTER)).fallback:
            assert hangs.asked == 1  # on a busy machine, the first call has not ended yet
        assert once.asked >= 1
    release.set()


async def test_a_cancelled_call_does_not_count_as_slow() -> None:
    release, called = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def waits(request: Request, snapshot: Snapshot) -> Decision:
        loop.call_soon_threadsafe(called.set)
        release.wait(allow_s(20))
        return get_policy("pack").place(request, snapshot)

    async with policies(mine=Always(waits)) as found:
        first = asyncio.ensure_future(found.decide("mine", HALF, CLUSTER))
        await called.wait()
        first.cancel()
        second = asyncio.ensure_future(found.decide("mine", HALF, CLUSTER))
        release.set()
        assert (await second).fallback is None
        assert first.cancelled()


async def test_the_same_object_serves_every_decision() -> None:
    async with policies() as found:
        for name in ("pack", "balanced"):
            await found.decide(name, HALF, CLUSTER)
        assert found.get("pack") is found.get("pack")
    always = placed("small", "0")
    async with policies(mine=always) as found:
        for _ in range(3):
            await found.decide("mine", HALF, CLUSTER)
        assert always.asked == 3


async def test_shipped_policies_adapt_to_recent_requests() -> None:
    recent = RecentRequests(None, clock=lambda: 0.0)
    found = PolicyCatalog(Settings(), recent)
    await found.decide("balanced", HALF, CLUSTER)
    before = found.get("balanced")
    for _ in range(19):
        recent.note(HALF)
    await found.decide("balanced", HALF, CLUSTER)
    assert found.get("balanced") is before
    recent.note(HALF)
    decision = await found.decide("balanced", HALF, CLUSTER)
    assert found.get("balanced") is not before
    assert decision.placement is not None
    assert "fragmentation" in decision.placement.terms


async def test_a_function_gets_the_workload() -> None:
    seen: list[Workload] = []

    def mine(workload: Workload) -> Always:
        seen.append(workload)
        return placed("small", "0")

    recent = RecentRequests(None, clock=lambda: 0.0)
    found = PolicyCatalog(Settings(), recent)
    await found.add(**given("mine", mine))
    await found.decide("mine", HALF, CLUSTER)
    for _ in range(20):
        recent.note(HALF)
    for _ in range(2):
        assert (await found.decide("mine", HALF, CLUSTER)).fallback is None
    assert [workload.is_useful for workload in seen][-2:] == [False, True]
    await found.close()


async def test_a_start_falls_back_and_says_so(tmp_path: Path) -> None:
    async with fake_world(tmp_path, gpus=2, settings=Settings(policies={"mine": f"{__name__}:BROKEN"})) as w:
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
    async with fake_world(tmp_path, gpus=2, settings=Settings(policy_timeout_s=20)) as w:
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
