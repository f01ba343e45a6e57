"""Groups that wait for a new node, without Ray."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from roost.placement import Request, Snapshot
from roost.scheduler.backends.agent_per_node.membership import Membership
from roost.scheduler.backends.base import Lease, Owner
from roost.scheduler.backends.ray import autoscaler, guard, new_nodes, placement_groups
from roost.scheduler.backends.ray.autoscaler import Kind
from roost.scheduler.backends.ray.new_nodes import RayNewNodes
from roost.scheduler.backends.ray.nodes import RayNode
from roost.scheduler.backends.ray.placement_groups import Group
from roost.scheduler.errors import BackendUnavailable

HEAD = RayNode(
    id="h", daemon="h1", address="h", labels={}, model="", total={}, free={}, groups=frozenset(), is_head=True
)
NEW = replace(HEAD, id="n", daemon="n1", address="n", is_head=False)
GPU = {"resources": {"CPU": 4, "GPU": 2, "accelerator_type:T4": 1}, "max_workers": 3, "labels": {"zone": "b"}}
BIG = {"resources": {"CPU": 9, "GPU": 8}, "labels": {"ray.io/accelerator-type": "A100"}, "max_workers": 0}
FILE = {"head_node_type": "head", "max_workers": 9, "available_node_types": {"gpu": GPU, "big": BIG}}
LEASE = Lease(id="roost:k:s/1", kernel_id="k", owner=Owner(user="ada"), request=Request(gpus=0.5))
NAME = "roost:k:s/1 for ada"

HELD = Group(
    id="g",
    name=NAME,
    lease_id="",
    kernel_id="",
    user="",
    node="n1",
    amounts={"GPU": 1.0},
    is_created=True,
)


class FakeRay:
    """Ray with one autoscaler, in place of `RayCalls`. `groups` has the bundles and selectors by name."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.file: dict[str, Any] | None = FILE
        self.has_monitor = True
        self.groups: dict[str, tuple[dict[str, float], dict[str, str]]] = {}
        self.renewed: list[list[str]] = []
        self.guard_lives = asyncio.Event()
        self.guard_lives.set()
        self.nodes: list[RayNode] = [HEAD]
        self.problem = ""
        self.asked: list[Callable[..., Any]] = []
        self.membership: Membership[RayNode] = Membership("Ray", join=self._join, fetch=self._fetch)
        self.new_nodes = RayNewNodes(
            self.membership,
            self.ask,
            self,
            {},
            after_s=30.0,
            start_timeout_s=900.0,
        )

    async def _join(self, address: str) -> str:
        return "h:1"

    async def _fetch(self) -> list[RayNode]:
        return list(self.nodes)

    async def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        self.asked.append(question)
        if self.problem:
            raise BackendUnavailable(self.problem)
        if question is autoscaler.find_kind:
            return self.kind
        if question is guard.renew:
            self.renewed.append(list(arguments[1]))
            return "guard"
        if question is placement_groups.create_unpinned:
            self.groups[arguments[0]] = arguments[1], arguments[2]
        if question is placement_groups.remove:
            self.groups.pop(arguments[0], None)
        if question is placement_groups.read_groups:
            return [
                Group(
                    id=f"id of {name}",
                    name=name,
                    lease_id="",
                    kernel_id="",
                    user=name.partition(" for ")[2],
                    node="",
                    amounts=bundle,
                    is_created=False,
                )
                for name, (bundle, _) in self.groups.items()
            ]
        return "reference"

    async def answer(self, reference: Any, deadline_s: float, purpose: str) -> Any:
        if reference == "guard":
            await self.guard_lives.wait()
        return {"has_monitor": self.has_monitor, "config": self.file}

    async def read(self, *, again: bool = True) -> RayNewNodes:
        """Read the nodes, and wait until the head's file is read."""
        if again:
            self.new_nodes._read_at = -float("inf")
        await self.membership.join("")
        await self.new_nodes.keep_up(self.nodes)
        while self.new_nodes._describing is not None and not self.new_nodes._describing.done():
            await asyncio.wait([self.new_nodes._describing])
        return self.new_nodes


@pytest.fixture
def ray(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    monkeypatch.setattr(placement_groups, "takes_selectors", lambda: True)
    return FakeRay(getattr(request, "param", "second"))


async def test_a_cluster_without_an_autoscaler_stands_still_and_costs_one_question(ray: FakeRay) -> None:
    ray.kind = ""
    found = await ray.read()
    assert (found.adds_nodes, found.may_grow, found.list_types(Snapshot.of([]))) == (False, False, ())
    assert ray.asked == [autoscaler.find_kind]
    await ray.read(again=False)
    assert ray.asked == [autoscaler.find_kind]


async def test_a_monitor_without_a_file_only_reports(ray: FakeRay) -> None:
    ray.file = None
    found = await ray.read()
    assert (found.adds_nodes, found.may_grow) == (False, False)
    ray.asked.clear()
    await ray.read(again=False)
    assert ray.asked == []


async def test_an_autoscaler_elsewhere_may_start_anything(ray: FakeRay) -> None:
    ray.file, ray.has_monitor = None, False
    found = await ray.read()
    assert (found.adds_nodes, found.may_grow, found.list_types(Snapshot.of([]))) == (True, True, ())
    await found.ask(LEASE)
    (lease,) = await found.follow([LEASE])
    assert lease.reason == "Ray's autoscaler was asked for 0.5 GPU: `ray status` says more"


async def test_nothing_is_refused_for_good_before_the_file_is_read(ray: FakeRay) -> None:
    changes: list[tuple[bool, bool]] = []
    ray.new_nodes.listen(lambda: changes.append((ray.new_nodes.adds_nodes, ray.new_nodes.may_grow)))
    await ray.membership.join("")
    await ray.new_nodes.keep_up(ray.nodes)
    assert (ray.new_nodes.adds_nodes, ray.new_nodes.may_grow) == (False, True)
    assert ray.new_nodes.is_still_reading
    await ray.read()
    assert not ray.new_nodes.is_still_reading
    assert changes == [(True, False)]


async def test_nothing_is_refused_for_good_before_the_autoscaler_of_a_head_that_is_back_reports(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ray.read()
    changes: list[tuple[bool, bool]] = []
    ray.new_nodes.listen(lambda: changes.append((ray.new_nodes.adds_nodes, ray.new_nodes.may_grow)))
    ray.kind = ""
    ray.new_nodes.reset("h:1")
    assert ray.new_nodes.is_still_reading
    assert (await ray.read()).may_grow
    ray.kind, ray.has_monitor, ray.file = "second", False, None
    assert (await ray.read()).list_types(Snapshot.of([])) == ()
    ray.has_monitor, ray.file = True, FILE
    ray.new_nodes._described_at = time.monotonic() - new_nodes._DESCRIBE_SOON_S
    assert len((await ray.read()).list_types(Snapshot.of([]))) == 2
    assert changes[-1] == (True, False)
    ray.kind = ""
    ray.new_nodes.reset("h:1")
    assert (await ray.read()).may_grow
    monkeypatch.setattr(ray.new_nodes, "_expected_until", time.monotonic())
    found = await ray.read()
    assert (found.is_still_reading, found.may_grow, changes[-1]) == (False, False, (False, False))


@pytest.mark.parametrize(
    ("asked", "bundle", "selector"),
    [
        (Request(gpus=0.5, cpus=1), {"CPU": 1, "GPU": 0.5}, {}),
        (Request(labels={"zone": "b"}), {"CPU": 0.0001}, {"zone": "b"}),
        (Request(gpus=1, gpu_models=("T4",)), {"GPU": 1, "accelerator_type:T4": 0.001}, {}),
        (Request(gpus=1, gpu_models=("A100",)), {"GPU": 1}, {"ray.io/accelerator-type": "A100"}),
        (Request(gpus=1, gpu_models=("A100", "T4")), {"GPU": 1}, {"ray.io/accelerator-type": "in(A100,T4)"}),
    ],
)
async def test_a_group_names_all_that_the_request_names(
    ray: FakeRay, asked: Request, bundle: dict[str, float], selector: dict[str, str]
) -> None:
    found = await ray.read()
    assert found.why_not(asked) == ""
    await found.ask(replace(LEASE, request=asked))
    assert ray.groups == {NAME: (bundle, selector)}


@pytest.mark.parametrize("ray", ["first"], indirect=True)
@pytest.mark.parametrize(
    ("asked", "why_not"),
    [
        (Request(gpus=1), ""),
        (Request(gpus=1, gpu_models=("T4",)), ""),
        (Request(gpus=1, gpu_models=("A100",)), "nodes of other kinds"),
        (Request(labels={"zone": "b"}), "nodes of other kinds"),
        (Request(gpus=1, gpu_memory_bytes=1), "by the memory of its GPUs"),
        (Request(labels={"node": "n"}), "has no name"),
    ],
)
async def test_the_first_autoscaler_is_not_asked_for_labels(
    ray: FakeRay, asked: Request, why_not: str
) -> None:
    found = await ray.read()
    assert why_not in found.why_not(asked)
    assert bool(found.why_not(asked)) == bool(why_not)


async def test_an_old_ray_is_not_asked_for_labels(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement_groups, "takes_selectors", lambda: False)
    found = await ray.read()
    assert "this version of Ray" in found.why_not(Request(labels={"zone": "b"}))


async def test_a_lease_has_its_node_where_ray_has_created_the_group(ray: FakeRay) -> None:
    found = await ray.read()
    await found.ask(LEASE)
    await found.follow([LEASE])
    ray.nodes.append(replace(NEW, groups=frozenset({f"id of {NAME}"})))
    await ray.membership.read()
    assert await found.follow([LEASE]) == [replace(LEASE, state="pending", node_id="n")]
    assert found.is_granted(NAME)

    ray.nodes.pop()  # the node ends: the group must not wait for another one
    await found.keep_up(ray.nodes)
    assert ray.groups == {}
    assert not found.is_granted(NAME)


async def test_a_group_that_somebody_has_removed_is_lost(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "RENEW_S", 0.0)
    found = await ray.read()
    await found.ask(LEASE)
    ray.groups.clear()
    (lease,) = await found.follow([LEASE])
    assert (lease.state, lease.reason) == ("lost", "its placement group was removed")


async def test_the_guard_knows_a_group_before_ray_does(ray: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    found = await ray.read()
    ray.asked.clear()
    await found.ask(LEASE)
    assert ray.asked == [guard.renew, placement_groups.create_unpinned]
    await found.follow([LEASE])
    assert ray.renewed == [[NAME]]
    monkeypatch.setattr(guard, "RENEW_S", 0.0)
    await found.keep_up([HEAD])
    assert ray.renewed == [[NAME], [NAME]]
    ray.problem = "the guard's class is lost"
    await found.keep_up([HEAD])  # its problem is no outage


async def test_the_guard_lives_before_a_group_does(ray: FakeRay) -> None:
    """If the service is killed right after it has asked for the group, the guard must remove the group."""
    found = await ray.read()
    ray.guard_lives.clear()
    asking = asyncio.ensure_future(found.ask(LEASE))
    await asyncio.sleep(0.05)
    assert (ray.renewed, ray.groups) == ([[NAME]], {})
    ray.guard_lives.set()
    await asking
    assert list(ray.groups) == [NAME]


async def test_the_guard_hears_of_a_created_group_until_an_agent_has_noted_its_lease(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await ray.read()
    found.note([replace(HELD, name=NAME), replace(HELD, name="another")])
    monkeypatch.setattr(guard, "RENEW_S", 0.0)
    await found.keep_up([HEAD, NEW])
    assert ray.renewed == []
    found.hold(LEASE)
    await found.keep_up([HEAD, NEW])
    assert ray.renewed == [[NAME]]
    ray.asked.clear()
    for _ in range(2):
        await found.settle(LEASE)
    assert ray.asked == [guard.settle]
    found.hold(LEASE)  # a repeated claim
    await found.keep_up([HEAD, NEW])
    assert ray.renewed == [[NAME]]


async def test_the_guard_hears_later_of_a_noted_lease_if_ray_does_not_answer(
    ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await ray.read()
    found.note([HELD])
    ray.problem = "Ray has not answered for 10 s"
    await found.settle(LEASE)
    ray.problem = ""
    ray.asked.clear()
    monkeypatch.setattr(guard, "RENEW_S", 0.0)
    found.hold(replace(LEASE, id="roost:k:s/2"))  # nothing is renewed for a lease without a created group
    for _ in range(2):
        await found.keep_up([HEAD, NEW])
    assert ray.asked.count(guard.settle) == 1
    assert ray.renewed == []


async def test_a_group_of_an_earlier_service_goes_with_its_node(ray: FakeRay) -> None:
    found = await ray.read()
    ray.groups[NAME] = {}, {}
    found.note([HELD, replace(HELD, name="tied", amounts={"node:n": 0.0001})])
    await found.keep_up([HEAD, NEW])
    assert ray.groups
    await found.keep_up([HEAD])
    assert not ray.groups


async def test_an_autoscaler_that_does_not_answer_is_no_outage(ray: FakeRay) -> None:
    ray.problem = "Ray has not answered"
    found = await ray.read()
    assert not found.adds_nodes
    ray.problem = ""
    assert (await ray.read()).adds_nodes
