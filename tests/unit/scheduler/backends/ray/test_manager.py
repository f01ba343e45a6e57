"""Leases that live kernels claim again: Ray grants the first free device, which may be another one. And agents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from roost.launchers.protocol.messages import Owner
from roost.placement import Request
from roost.scheduler.backends.base import Lease
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.backends.ray import SPEC, agent_task, join, manager, nodes, placement_groups
from roost.scheduler.backends.ray.manager import RayManager
from roost.scheduler.backends.ray.nodes import RayNode
from roost.scheduler.backends.ray.placement_groups import Group
from roost.scheduler.backends.ray.settings import RoostRayBackend
from roost.scheduler.errors import BackendUnavailable, LeaseConflict
from roost.testing.deadlines import until

SERVICE = KeyPair("public", "secret")
NODE = RayNode(
    id="a", daemon="1", address="a", labels={}, model="", total={"GPU": 2.0}, free=None, groups=None
)


OTHER = replace(NODE, id="b", daemon="2", address="b")


class OneNode:
    """Ray with one node of two GPUs, in place of `RayCalls`."""

    def __init__(self, **taken: float) -> None:
        self.held = {name: ("0", share) for name, share in taken.items()}

    async def run(self, join: Callable[[], Any], *, deadline_s: float) -> str:
        return "a:1"

    async def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        if question is placement_groups.create:
            return self._create(arguments[0], arguments[1].gpus)
        if question is placement_groups.leave_no_room:
            return sum(share for _, share in self.held.values()) + arguments[0].gpus > NODE.total["GPU"]
        if question is placement_groups.remove:
            self.held.pop(arguments[0], None)
        if question is nodes.read:
            return (NODE,)
        return "anchor"

    async def answer(self, name: str, *_: object) -> list[str]:
        return [self.held[name][0]]

    def close(self) -> None:
        pass

    def _create(self, name: str, share: float) -> Group:
        for device in ("0", "1"):
            if sum(held for at, held in self.held.values() if at == device) + share <= 1:
                self.held[name] = (device, share)
                return Group(
                    id=name,
                    name=name,
                    lease_id="",
                    kernel_id="",
                    user="",
                    node="1",
                    amounts={},
                    is_created=True,
                    device_ids=name,
                )
        raise LeaseConflict("full")


def lease(device: str, share: float) -> Lease:
    request, owner = Request(gpus=share), Owner(user="ada")
    return Lease(
        id="roost:k:s/1", kernel_id="k", node_id="a", device_ids=(device,), request=request, owner=owner
    )


async def claim_again(ray: OneNode, held: Lease) -> tuple[str, ...]:
    ray_manager = RayManager(RoostRayBackend(), SERVICE, ray)  # type: ignore[arg-type]
    await ray_manager.membership.join("")
    return await ray_manager.claim(held, NODE, lambda *_: True, again=True)


@pytest.fixture(autouse=True)
def believing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager, "_CONFIRM_S", 0.0)
    monkeypatch.setattr(manager, "_ASK_AGAIN_S", 0.0)


@pytest.mark.parametrize("device", ["0", "1"])
@pytest.mark.parametrize("share", [1, 0.5, 0.25])
async def test_a_live_kernel_gets_its_own_device_again(device: str, share: float) -> None:
    ray = OneNode()
    assert await claim_again(ray, lease(device, share)) == (device,)
    assert ray.held == {"roost:k:s/1 for ada": (device, share)}


async def test_nothing_is_kept_if_another_kernel_has_the_device() -> None:
    ray = OneNode(other=0.75)
    with pytest.raises(LeaseConflict):
        await claim_again(ray, lease("0", 0.5))
    assert ray.held == {"other": ("0", 0.75)}


@pytest.mark.parametrize(
    ("options", "namespace"), [({}, "roost"), ({"namespace": "team"}, "team"), ({"namespace": ""}, "roost")]
)
async def test_a_kernel_joins_the_namespace_that_it_asks_for(options: dict[str, str], namespace: str) -> None:
    SPEC.check_options(options)
    held = lease("0", 1)
    held = replace(held, request=replace(held.request, options=options))
    ray_manager = RayManager(RoostRayBackend(), SERVICE, OneNode())  # type: ignore[arg-type]
    environment = await ray_manager.environment(held, "192.0.2.1:6379")
    assert (environment["RAY_ADDRESS"], environment["RAY_NAMESPACE"]) == ("192.0.2.1:6379", namespace)


async def test_an_agent_is_asked_to_have_the_chosen_interpreter() -> None:
    """An agent that runs is compared with these settings, and one in another interpreter is replaced."""
    ray = NewNode()
    ray_manager = await join_new(ray, python="/opt/python")
    with pytest.raises(BackendUnavailable, match="this is no node"):
        await ray_manager.start_agent("a")
    assert [(settings["python"], settings["address"]) for settings in ray.asked] == [("/opt/python", "a")]


async def test_a_refusal_is_doubted_while_the_devices_of_another_claim_are_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(manager, "_CONFIRM_S", 60.0)
    may_read, refusals = asyncio.Event(), iter([LeaseConflict("its room is freed late")])

    class FreedLate(OneNode):
        async def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
            if question is placement_groups.create and self.held:
                for refusal in refusals:
                    raise refusal
            return await super().ask(question, *arguments)

        async def answer(self, name: str, *_: object) -> list[str]:
            await may_read.wait()
            return await super().answer(name)

    ray_manager = RayManager(RoostRayBackend(), SERVICE, FreedLate())  # type: ignore[arg-type]
    await ray_manager.membership.join("")
    ray_manager._has_begun.add(NODE.daemon)
    first, second = lease("0", 1), replace(lease("1", 1), id="roost:k:s/2")
    claims = [
        asyncio.ensure_future(ray_manager.claim(each, NODE, lambda node_id, request: True))
        for each in (first, second)
    ]
    await asyncio.sleep(0.05)
    may_read.set()
    assert await asyncio.gather(*claims) == [("0",), ("1",)]


class NewNode(OneNode):
    """Ray with a node that has just joined, and a group that waited for it. `answers` follow by Ray reference."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[dict[str, Any]] = []
        """The settings of the agents that tasks of their own were to start."""
        self.brought_up = 0
        self.workers: list[str] = []
        """What had Ray start a worker for the tasks that read devices."""
        self.cancelled: list[str] = []
        self.is_taken_back = False
        self.waits: dict[str, asyncio.Event] = {}
        self.began = asyncio.Event()

    async def ask(self, question: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if question is agent_task.start_on:
            self.asked.append(json.loads(arguments[1][3]))
            return "own task"
        if question in (placement_groups.find_granted, placement_groups.create):
            *_, bring_up = arguments
            self.brought_up += bring_up is not None
            await self._wait("finding")
            if self.is_taken_back:
                raise LeaseConflict("taken back")
            group = self._create(arguments[0], 1)
            return group if bring_up is None else replace(group, device_ids="devices", agent="agent")
        if question is placement_groups.cancel_reading:
            self.cancelled.append(arguments[0])
        if question is placement_groups.start_reader:
            self.workers.append("start_reader")
        if getattr(question, "__name__", "") == "_prepare":
            return question(*arguments)
        return await super().ask(question, *arguments)

    def begin(self, call: Callable[..., Any], reference: str) -> None:
        assert call is placement_groups.cancel_reading
        self.cancelled.append(reference)

    async def answer(self, name: str, *_: object) -> Any:
        if name == "own task":
            return {"problem": "this is no node"}
        await self._wait(name)
        if name in self.cancelled:
            raise BackendUnavailable("cancelled")
        return ["1"] if name == "devices" else {"endpoint": "tcp://a:1", "public": "key"}

    async def _wait(self, step: str) -> None:
        if step in self.waits:
            self.began.set()
            await self.waits[step].wait()


async def join_new(ray: OneNode, **settings: Any) -> RayManager:
    ray_manager = RayManager(RoostRayBackend(**settings), SERVICE, ray)  # type: ignore[arg-type]
    await ray_manager.membership.join("")
    ray_manager.new_nodes.is_granted = lambda name: True  # type: ignore[method-assign]
    return ray_manager


async def test_on_a_new_node_one_worker_reads_the_devices_and_brings_up_the_agent() -> None:
    ray = NewNode()
    ray_manager = await join_new(ray)
    claiming = asyncio.ensure_future(ray_manager.claim(lease("1", 1), NODE, lambda *_: True))
    await asyncio.sleep(0)
    agent = await ray_manager.start_agent("a")
    assert (await claiming, agent.address.endpoint, agent.daemon) == (("1",), "tcp://a:1", "1")
    assert (ray.asked, ray.brought_up) == ([], 1)

    await ray_manager.claim(replace(lease("0", 1), id="roost:k:s/2"), NODE, lambda *_: True)
    assert ray.brought_up == 1, "the node has an agent"
    with pytest.raises(BackendUnavailable, match="this is no node"):
        await ray_manager.start_agent("a")  # again, after its end: nothing old is answered


class JoiningNode(OneNode):
    """Ray with two nodes. The first readings do not show the second one yet, which has a group that waited for it."""

    def __init__(self, readings_without: int) -> None:
        super().__init__()
        self.readings_without = readings_without
        self.removed: list[str] = []

    async def ask(self, question: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if question is nodes.read:
            self.readings_without -= 1
            return (NODE,) if self.readings_without >= 0 else (NODE, OTHER)
        if question is placement_groups.read_groups:
            return [
                Group(
                    id="g", name="roost:k:s/1 for ada", lease_id="roost:k:s/1", kernel_id="k", user="ada",
                    node=OTHER.daemon, amounts={"GPU": 1.0}, is_created=True,
                )
            ]  # fmt: skip
        if question is placement_groups.remove:
            self.removed.append(arguments[0])
        return await super().ask(question, *arguments)


@pytest.mark.parametrize("readings_without", [0, 1, 2])
async def test_a_group_on_a_node_that_has_just_joined_is_not_lost(readings_without: int) -> None:
    ray = JoiningNode(readings_without)
    ray_manager = await join_new(ray)
    (found,) = await ray_manager.claims()
    assert (found.state, found.node_id) == ("held", OTHER.id)
    await ray_manager.membership.read()
    assert ray.removed == []


async def test_a_group_whose_node_has_left_is_lost() -> None:
    ray_manager = await join_new(JoiningNode(9))
    (found,) = await ray_manager.claims()
    assert (found.state, found.reason) == ("lost", "its node has left the Ray cluster")


async def test_further_claims_on_a_new_node_wait_for_the_first_worker() -> None:
    ray = NewNode()
    ray.waits["agent"] = asyncio.Event()
    ray_manager = await join_new(ray)
    leases = [lease("1", 1), replace(lease("0", 1), id="roost:k:s/2")]
    claims = [asyncio.ensure_future(ray_manager.claim(each, NODE, lambda *_: True)) for each in leases]
    await claims[0]
    await asyncio.sleep(0.05)
    assert not claims[1].done()
    ray.waits["agent"].set()
    await claims[1]
    assert ray.brought_up == 1


async def test_a_new_node_starts_its_agent_by_itself_if_the_place_is_taken_back() -> None:
    ray = NewNode()
    ray.is_taken_back = True
    ray_manager = await join_new(ray)
    claiming = asyncio.ensure_future(ray_manager.claim(lease("1", 1), NODE, lambda *_: True))
    await asyncio.sleep(0)
    with pytest.raises(BackendUnavailable, match="this is no node"):
        await ray_manager.start_agent("a")
    with pytest.raises(LeaseConflict, match="taken back"):
        await claiming
    assert len(ray.asked) == 1


async def test_a_worker_is_ready_for_later_claims_on_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after the first start, so that it slows down none."""
    monkeypatch.setattr(manager, "_READER_AFTER_S", 1.0)
    ray = NewNode()
    ray_manager = await join_new(ray)
    ray_manager.new_nodes.is_granted = lambda name: False  # type: ignore[method-assign]
    claiming = asyncio.ensure_future(ray_manager.claim(lease("1", 1), NODE, lambda *_: True))
    await asyncio.sleep(0)
    await ray_manager.start_agent("a")
    assert await claiming == ("1",)
    assert (ray.brought_up, ray.workers) == (1, [])
    await until(lambda: ray.workers, "a worker is started")
    assert ray.workers == ["start_reader"]

    await ray_manager.claim(replace(lease("0", 1), id="roost:k:s/2"), NODE, lambda *_: True)
    await ray_manager.close()
    assert (ray.brought_up, ray.workers) == (1, ["start_reader"])


@pytest.mark.parametrize("step", ["finding", "devices"])
async def test_a_cancelled_claim_on_a_new_node_leaves_no_task(step: str) -> None:
    """Otherwise Ray keeps a task that waits in a removed group."""
    ray = NewNode()
    ray.waits[step] = asyncio.Event()
    ray_manager = await join_new(ray)
    held = lease("1", 1)
    claiming = asyncio.ensure_future(ray_manager.claim(held, NODE, lambda *_: True))
    await ray.began.wait()
    claiming.cancel()
    await asyncio.wait([claiming])
    releasing = asyncio.ensure_future(ray_manager.release(held))
    await asyncio.sleep(0)
    ray.waits[step].set()
    await releasing
    assert "devices" in ray.cancelled


async def test_a_driver_whose_raylet_was_started_again_leaves_and_joins_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray regards such a driver as ended, and does not tell it."""
    found, left = [NODE, OTHER], list[Callable[[], Any]]()

    class Restarted(OneNode):
        async def run(self, join: Callable[[], Any], *, deadline_s: float) -> str:
            left.append(join)
            return "a:1"

        async def ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
            return tuple(found) if question is nodes.read else await super().ask(question, *arguments)

    monkeypatch.setattr(join, "get_raylet", lambda: NODE.daemon)
    ray_manager = RayManager(RoostRayBackend(), SERVICE, Restarted())  # type: ignore[arg-type]
    membership = ray_manager.membership
    await membership.join("")
    left.clear()
    found.remove(NODE)
    await membership.read()
    assert left == [], "without a raylet here, it can still claim on other nodes"
    found.append(replace(NODE, daemon="3"))
    with pytest.raises(BackendUnavailable, match="was started again"):
        await membership.read()
    assert (left, bool(membership.away)) == ([join.leave], True)
    monkeypatch.setattr(join, "get_raylet", lambda: "3")
    await membership.join("")
    assert not membership.away
