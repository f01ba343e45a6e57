"""The use of kernels, read from their agents. All calls within a short time get the same answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from roost.launchers.daemon.tasks import ask_all, cancel_all, join_shared, start_shared
from roost.launchers.protocol.kernel_message import STATES
from roost.launchers.protocol.messages import KernelUse, Lease
from roost.placement.model.json_codec import WireError
from roost.placement.model.last_entries import LastEntries
from roost.scheduler.errors import RoostError

from .backend_access import BackendAccess

log = logging.getLogger(__name__)

_LEAST_S, _MOST_BUSY = 1.0, 0.01
"""An answer is used again for a second, or for 100 times as long as it took if that is longer."""
_REMEMBERED = 1_000

Uses = Sequence[KernelUse]


class UseReader:
    """Reads the use of kernels.

    An agent is asked at most about once a second, however many clients want to know. An agent with a thousand
    kernels is asked less often, because its answer takes longer.
    """

    def __init__(self, access: BackendAccess) -> None:
        self._access = access
        self._answers = LastEntries[str, _Answer](_REMEMBERED)
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        await cancel_all(self._tasks)

    async def read(self, leases: Sequence[Lease], *, is_fresh: bool = False) -> dict[str, KernelUse]:
        """Return what kernels use, by kernel id. Kernels of unreachable agents are left out.

        With `is_fresh`, the agents are asked again.
        """
        agents, _ = await self._access.find_agents(leases)
        answers = await ask_all(lambda each: self._share(each[0], each[1][0], is_fresh), agents.items())
        return {use.kernel_id: use for answer in answers for use in answer or ()}

    async def _share(self, endpoint: str, lease: Lease, is_fresh: bool) -> Uses | None:
        answer = self._answers.get(endpoint)
        if answer is None or answer.is_old(is_fresh):
            answer = self._answers[endpoint] = _Answer()
            answer.task = start_shared(self._ask(lease, answer))
            self._tasks.add(answer.task)
            answer.task.add_done_callback(self._tasks.discard)
        assert answer.task is not None
        return await join_shared(answer.task)

    async def _ask(self, lease: Lease, answer: _Answer) -> Uses | None:
        """Return an agent's answer; None if there is none, or if it cannot be read.

        An agent's defect, or the program of a user who controls an agent's process, must not hide the use of other
        kernels.
        """
        began = time.monotonic()
        uses: Uses | None = None
        try:
            uses = await self._access.ask_agent(lease, lambda agent: agent.stats())
        except (RoostError, WireError) as problem:
            log.warning("lease=%s its agent's kernels have no use: %s", lease.id, type(problem).__name__)
        now = time.monotonic()
        answer.good_until = now if uses is None else now + max(_LEAST_S, (now - began) / _MOST_BUSY)
        return [_check_state(use) for use in uses] if uses is not None else None


def _check_state(use: KernelUse) -> KernelUse:
    return use if use.execution_state in ("", *STATES) else replace(use, execution_state="")


class _Answer:
    """The answer of an agent about the use of its kernels, or the call that waits for it."""

    def __init__(self) -> None:
        self.task: asyncio.Task[Uses | None] | None = None
        self.good_until = 0.0

    def is_old(self, is_fresh: bool) -> bool:
        is_done = self.task is not None and self.task.done()
        return is_done and (is_fresh or time.monotonic() >= self.good_until)
