"""Leases that live kernels claim again: Ray grants the first free device, which may be another one. And agents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from roost.launchers.protocol.agent_settings import AgentSettings
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
        if question is placement_groups.remove:
            self.held.pop(arguments[0], None)
        if question is nodes.read:
            return (NODE,)
        return "anchor"

    async def answer(self, name: str, *_: object) -> list[str]:
        return [self.held[name][0]]

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
def test_a_kernel_joins_the_namespace_that_it_asks_for(options: dict[str, str], namespace: str) -> None:
    SPEC.check_options(options)
    held = lease("0", 1)
    held = replace(held, request=replace(held.request, options=options))
    ray_manager = RayManager(RoostRayBackend(), SERVICE, OneNode())  # type: ignore[arg-type]
    environment = ray_manager.environment(held, "192.0.2.1:6379")
    assert (environment["RAY_ADDRESS"], environment["RAY_NAMESPACE"]) == ("192.0.2.1:6379", namespace)


async def test_an_agent_is_asked_to_have_the_chosen_interpreter() -> None:
    """An agent that runs is compared with these settings, and one in another interpreter is replaced."""
    asked: list[AgentSettings] = []

    class Starting(OneNode):
        async def ask(self, question: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            if question is agent_task.start_on:
                asked.append(arguments[1])
            return await super().ask(question, *arguments)

        async def answer(self, name: str, *_: object) -> Any:
            return {"problem": "this is no node"}

    ray_manager = RayManager(RoostRayBackend(python="/opt/python"), SERVICE, Starting())  # type: ignore[arg-type]
    await ray_manager.membership.join("")
    with pytest.raises(BackendUnavailable, match="this is no node"):
        await ray_manager.start_agent("a")
    assert [(settings.python, settings.address) for settings in asked] == [("/opt/python", "a")]


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
