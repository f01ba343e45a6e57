"""Policies that clients give to a catalog, and the cluster that they rank."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from roost.placement import (
    NOWHERE,
    Decision,
    Device,
    Node,
    Placement,
    Request,
    Snapshot,
    get_policy,
)
from roost.scheduler.config.settings import Settings
from roost.scheduler.policies.catalog import PolicyCatalog
from roost.scheduler.policies.pickling import PYTHON, pack_policy
from roost.scheduler.policies.recent_requests import RecentRequests
from roost.testing.deadlines import allow_s

GIB = 1 << 30


def node(name: str, cpus: float, *free: float, **more: Any) -> Node:
    """Return a node with a GPU for each free share."""
    devices = tuple(Device(id=str(i), promised=1 - share) for i, share in enumerate(free))
    return Node(id=name, cpus=cpus, memory_bytes=8 * GIB, devices=devices, metrics_age_s=1, **more)


CLUSTER = Snapshot.of([node("big", 64, 1, 0.5), node("full", 8, 0, cpus_promised=8), node("small", 8, 1)])


HALF = Request(cpus=1, gpus=0.5)


class Always:
    """A policy that returns the result of `answer`."""

    name = "always"

    def __init__(self, answer: Callable[[Request, Snapshot], Any]) -> None:
        self.answer = answer

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        return self.answer(request, snapshot)  # type: ignore[no-any-return]


def placed(node_id: str, *device_ids: Any, score: float = 1.0, **more: Any) -> Always:
    where = Placement(node_id=node_id, device_ids=device_ids, score=score)
    return Always(lambda request, _: Decision(request=request, policy="x", placement=where, **more))


@asynccontextmanager
async def policies(settings: Settings | None = None, **others: object) -> AsyncIterator[PolicyCatalog]:
    """Yield a catalog to which a client has added these objects as policies, by name."""
    made = PolicyCatalog(
        settings or Settings(policy_timeout_s=allow_s(20)), RecentRequests(None, clock=time.monotonic)
    )
    try:
        for name, other in others.items():
            await made.add(**given(name, other))
        yield made
    finally:
        await made.close()


def given(name: str, other: object, token: str = "") -> dict[str, str]:
    """Return a client's message that adds a policy."""
    return {
        "name": name,
        "pickled": pack_policy(name, other),
        "python": PYTHON,
        "token": token or uuid.uuid4().hex,
    }


async def fallback_of(found: PolicyCatalog, name: str = "mine", request: Request = HALF) -> str:
    decision = await found.decide(name, request, CLUSTER)
    expected = get_policy("balanced").place(request, CLUSTER)
    assert decision.policy == name
    assert decision.placement is not None
    assert expected.placement is not None
    assert decision.placement.node_id == expected.placement.node_id
    assert decision.placement.device_ids == expected.placement.device_ids
    assert decision.fallback is not None
    assert decision.fallback in decision.reason
    return decision.fallback


def install_package(folder: Path, **points: str) -> None:
    """Write the metadata of an installed package with these entry points for policies into a folder of `sys.path`."""
    package = folder / "theirs-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    lines = [f"{name} = {spec}\n" for name, spec in points.items()]
    (package / "entry_points.txt").write_text("".join(["[roost.policies]\n", *lines]))
