"""Keeps a warm process ready where the next kernel will go, so that the first kernel on a node is forked, too."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from roost.launchers.daemon.tasks import Timers, cancel_all, spawn
from roost.launchers.protocol.messages import Owner
from roost.launchers.protocol.process_context import ProcessContext
from roost.placement import Decision, Snapshot
from roost.placement.model import Request
from roost.scheduler.backends.base import Lease
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import StartKernel
from roost.scheduler.policies.catalog import PolicyCatalog

from .backend_access import BackendAccess

log = logging.getLogger(__name__)

_LATER_S = 1.0
"""How long after a start the next places are prepared, so that this slows down no start of a burst."""
_JOINED_S = 5.0
"""How long after a node has joined it is prepared: a start that waits for it goes first, and makes a process itself."""
_FOR_S = 600.0
"""How long after a user's last start a new node is prepared for the user's next one."""


@dataclass(frozen=True, slots=True)
class _Last:
    """The last start of a user, the node where it went, and when (by `time.monotonic`)."""

    start: StartKernel
    request: Request
    node_id: str
    at: float


class Readiness:
    """Prepares at most `most_places` places for each user: where the next kernel like the user's last one would go.

    These are the policy's choice and its runners-up, after each start and when a node has joined. An agent ends a
    process that no kernel has used for ten minutes. A node without kernels that its cluster can take away is left
    alone.
    """

    def __init__(
        self, access: BackendAccess, policies: PolicyCatalog, timers: Timers, most_places: int
    ) -> None:
        self._access = access
        self._policies = policies
        self._timers = timers
        self._most_places = most_places
        self._last: dict[str, _Last] = {}
        self._known: Set[str] = frozenset()
        """The nodes of the last look. Empty before the first start."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        await cancel_all(self._tasks)

    def note(self, start: StartKernel, request: Request, node_id: str) -> None:
        """Note that a kernel has started on this node. Soon afterwards, the places of the next one are prepared."""
        user = start.owner.user
        if not self._most_places or not start.may_fork:
            return
        self._last[user] = _Last(start, request, node_id, time.monotonic())
        key = "ready", user
        if key not in self._timers:
            self._timers.later(_LATER_S, lambda: spawn(self._prepare(user), self._tasks, log), key=key)

    def look(self) -> None:
        """Look for new nodes soon, because the cluster has changed. A user's next kernel may go to one of them."""
        if self._last and "ready" not in self._timers:
            self._timers.later(_JOINED_S, lambda: spawn(self._look(), self._tasks, log), key="ready")

    async def _look(self) -> None:
        since = time.monotonic() - _FOR_S
        self._last = {user: last for user, last in self._last.items() if last.at > since}
        before = self._known
        try:
            self._known = frozenset((await self._access.snapshot()).nodes)
        except RoostError:  # the cluster is away, and this is called again once it is back
            return
        if before and (joined := self._known - before):
            for user in list(self._last):
                await self._prepare(user, joined)

    async def _prepare(self, user: str, joined: Set[str] = frozenset()) -> None:
        """Prepare the next places of a user. Of these, only nodes that have `joined`, if any have."""
        last = self._last[user]
        start = last.start
        request = replace(last.request, environment=start.interpreter)
        try:
            snapshot = await self._access.snapshot()
            self._known = self._known or frozenset(snapshot.nodes)
            decision = await self._policies.decide(request.policy, request, snapshot)
            for node_id in islice(self.choose(decision, snapshot), self._most_places):
                # The start itself has made a process on its node.
                if node_id != last.node_id and (not joined or node_id in joined):
                    await self.warm(node_id, start.argv, start.env, start.context)
        except RoostError as problem:
            log.info("no place is ready for the next kernel of %s: %s", user, problem)

    def choose(self, decision: Decision, snapshot: Snapshot) -> Iterator[str]:
        """Yield the nodes of a decision that may be prepared, the best one first.

        The runners-up, which cost a look at all nodes, are computed only if the best one is not enough.
        """
        if decision.placement is None:
            return
        if self._may_prepare(decision.placement.node_id, snapshot):
            yield decision.placement.node_id
        for place in decision.runners_up:
            if self._may_prepare(place.node_id, snapshot):
                yield place.node_id

    def _may_prepare(self, node_id: str, snapshot: Snapshot) -> bool:
        return bool(snapshot.node(node_id).kernels) or not self._access.backend.may_end(node_id)

    async def warm(
        self, node_id: str, argv: tuple[str, ...], env: Mapping[str, str], context: ProcessContext
    ) -> None:
        """Have the agent of a node make a process from which such kernels can be forked. Raises `RoostError`."""
        lease = Lease(id="", kernel_id="", node_id=node_id, request=Request(), owner=Owner(user=""))
        await self._access.call(lease, lambda agent: agent.warm(argv, env, context))
