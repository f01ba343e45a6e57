"""The nodes whose agents ran and do not answer now. They get no more kernels until their agents answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from roost.launchers.daemon.tasks import backoff, cancel_all, spawn
from roost.scheduler.errors import RoostError

from .agents import AgentPool

log = logging.getLogger(__name__)

ANSWERS_S = 10.0
"""A claim waits this long for an agent that has run before. After that, the agent is silent."""
_AGAIN_S = (0.5, 30.0)
"""First and longest pause between two attempts to reach a silent agent."""


class SilentAgents:
    """The ids of these nodes. Each agent is called until it answers, or until its node has left.

    `on_change` gets the id of a node that has become silent, or is not silent any more.
    """

    def __init__(
        self, pool: AgentPool, is_there: Callable[[str], bool], on_change: Callable[[str], object]
    ) -> None:
        self._pool = pool
        self._is_there = is_there
        self._on_change = on_change
        self._node_ids: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._node_ids

    async def close(self) -> None:
        await cancel_all(self._tasks)

    def note(self, node_id: str) -> None:
        """Note that the node's agent has not answered. May be repeated."""
        if node_id not in self._node_ids:
            log.warning("node=%s its agent does not answer", node_id)
            self._node_ids.add(node_id)
            spawn(self._call(node_id), self._tasks, log)
            self._on_change(node_id)

    async def _call(self, node_id: str) -> None:
        try:
            for pause_s in backoff(*_AGAIN_S):
                try:
                    await self._pool.call(node_id, lambda agent: agent.status())
                    return
                except RoostError as problem:
                    log.debug("node=%s its agent is still silent: %s", node_id, problem)
                if not self._is_there(node_id):
                    return
                await asyncio.sleep(pause_s)
        finally:
            self._node_ids.discard(node_id)
            self._on_change(node_id)
