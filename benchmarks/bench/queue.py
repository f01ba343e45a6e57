"""`roost bench queue`: users who share the cluster, and how long their kernels wait.

Each user starts a kernel, uses it for a while, stops it, and starts the next one after a pause. Uses and pauses are
random, with the given means (exponential). The seed is in the result, so that a run can be repeated.

wait                start_kernel() called → first reply
wait, longest       of each user
queued              the share of kernels that had to wait in roost's queue
kernels per hour    of all users
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from roost.scheduler.errors import RoostError

from .kernel import BenchKernel, NoAnswer
from .report import Report, show_time
from .sides import Side

_QUEUED_MS = 100.0
"""A kernel that roost's scheduler has kept for longer has waited in the queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What the users do: their number, the means of uses and pauses, and for how long all that goes on."""

    users: int
    use_s: float
    pause_s: float
    for_s: float
    seed: int


async def measure(report: Report, sides: Sequence[Side], habits: Habits) -> None:
    """Let the users work with each side in turn, with the same random times."""
    for side in sides:
        report.notes += await _Run(report, side, habits).run()
    report.compare("kernels per hour", [side.name for side in sides])


class _Run:
    """The users of one side."""

    def __init__(self, report: Report, side: Side, habits: Habits) -> None:
        self._report = report
        self._side = side
        self._habits = habits
        self._ends_at = 0.0
        self._done = self._queued = 0
        self._refused: dict[str, int] = {}

    async def run(self) -> list[str]:
        """Run all users. Return what to say of it beside the figures."""
        side, habits = self._side, self._habits
        began = time.monotonic()
        self._ends_at = began + habits.for_s
        users = asyncio.gather(*(self._work(number) for number in range(habits.users)))
        await show_time(side.name, users, habits.for_s)
        if self._done:
            hours = (time.monotonic() - began) / 3600
            self._report.add(f"kernels per hour/{side.name}", self._done / hours, "")
            if side.is_roost:
                self._report.add(f"queued/{side.name}", self._queued / self._done, "")
        return [f"{count} kernels of {side.name} were refused: {why}" for why, count in self._refused.items()]

    async def _work(self, number: int) -> None:
        """Be one user until the time is over."""
        dice = random.Random(f"{self._habits.seed} {number}")
        longest = 0.0
        while (rest_s := self._ends_at - time.monotonic()) > 0:
            await asyncio.sleep(min(rest_s, dice.expovariate(1 / self._habits.pause_s)))
            use_s = dice.expovariate(1 / self._habits.use_s)
            if time.monotonic() >= self._ends_at:
                break
            kernel = BenchKernel(self._side)
            try:
                waited_ms = (await kernel.start(user=f"user-{number}"))["start"]
                await self._note(kernel, waited_ms)
                longest = max(longest, waited_ms)
                await asyncio.sleep(min(use_s, max(0.0, self._ends_at - time.monotonic())))
            except NoAnswer as problem:
                self._report.count_failure(self._side.name, str(problem))
            except RoostError as refusal:
                self._refused[str(refusal)] = self._refused.get(str(refusal), 0) + 1
            finally:
                await kernel.stop()
        if longest:
            self._report.add(f"wait, longest/{self._side.name}", longest, "ms")

    async def _note(self, kernel: BenchKernel, waited_ms: float) -> None:
        self._done += 1
        self._report.add(f"wait/{self._side.name}", waited_ms, "ms")
        if self._side.is_roost:
            found = await self._side.connect().kernel(kernel.manager.kernel_id)
            self._queued += found.timing_ms.get("queued", 0.0) > _QUEUED_MS
