"""`roost bench queue`: users who share the cluster, and how long their kernels wait.

Each user starts a kernel, uses it for a while, stops it, and starts the next one after a pause. Uses and pauses are
random, with the given means (exponential). The seed is in the result, so that a run can be repeated.
Alternatively, the kernels of a trace arrive. Their requests and durations are those of the trace.

wait                start_kernel() called → first reply
wait, longest       the longest wait of each user
queued              the share of kernels that had to wait in roost's queue
kernels per hour    the number for all users together, compared if no kernel was refused
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from roost.placement import Request
from roost.placement.trace_run import Arrival
from roost.scheduler.errors import RoostError
from roost.scheduler.simulate.trace_files import read_trace

from .kernel import BenchKernel, NoAnswer
from .report import Report, show_time
from .sides import Side

_QUEUED_MS = 100.0
"""A kernel counts as queued if its start was in the scheduler's queue for longer than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """The number of users, the means of their uses and pauses, and the length of the run.

    With a `trace` (a file), its kernels arrive instead, `speed` times as fast.
    """

    users: int
    use_s: float
    pause_s: float
    for_s: float
    seed: int
    trace: str = ""
    speed: float = 1.0

    def read_arrivals(self) -> list[Arrival]:
        """Return the kernels of the trace, with times from 0, divided by `speed`. May raise `ConfigError`."""
        tasks = read_trace(self.trace)
        return [
            Arrival(
                request=task.request,
                at_s=(task.at_s - tasks[0].at_s) / self.speed,
                duration_s=None if task.duration_s is None else task.duration_s / self.speed,
            )
            for task in tasks
        ]


async def measure(report: Report, sides: Sequence[Side], habits: Habits) -> None:
    """Let the users work with each side in turn, with the same random times."""
    refusals = []
    for side in sides:
        refusals += await _Run(report, side, habits).run()
    report.notes += refusals
    if not refusals:
        report.compare("kernels per hour", [side.name for side in sides])
    elif len(sides) > 1:
        report.notes.append(
            "Kernels per hour are not compared: not every side refuses what no node can hold."
        )


class _Run:
    """One run, in which all users work with the kernels of one side."""

    def __init__(self, report: Report, side: Side, habits: Habits) -> None:
        self._report = report
        self._side = side
        self._habits = habits
        self._ends_at = 0.0
        self._done = self._queued = 0
        self._refused: dict[str, int] = {}
        self._longest: dict[str, float] = {}

    async def run(self) -> list[str]:
        """Run all users. Return notes for the report: a sentence for each reason of refused kernels."""
        side, habits = self._side, self._habits
        began = time.monotonic()
        self._ends_at = began + habits.for_s
        if habits.trace:
            arrivals = [each for each in habits.read_arrivals() if each.at_s < habits.for_s]
            work = [self._play(number, each) for number, each in enumerate(arrivals)]
        else:
            work = [self._work(number) for number in range(habits.users)]
        await show_time(side.name, work, habits.for_s)
        for longest in self._longest.values():
            self._report.add(f"wait, longest/{side.name}", longest, "ms")
        if self._done:
            hours = (time.monotonic() - began) / 3600
            self._report.add(f"kernels per hour/{side.name}", self._done / hours, "")
            if side.is_roost:
                self._report.add(f"queued/{side.name}", self._queued / self._done, "")
        return [f"{count} kernels of {side.name} were refused: {why}" for why, count in self._refused.items()]

    async def _work(self, number: int) -> None:
        """Act as one user, who starts, uses and stops kernels until the time is over."""
        dice = random.Random(f"{self._habits.seed} {number}")
        while (rest_s := self._ends_at - time.monotonic()) > 0:
            await asyncio.sleep(min(rest_s, dice.expovariate(1 / self._habits.pause_s)))
            use_s = dice.expovariate(1 / self._habits.use_s)
            if time.monotonic() >= self._ends_at:
                break
            await self._use(f"user-{number}", use_s, {})

    async def _play(self, number: int, arrival: Arrival) -> None:
        """Start one kernel of the trace at its time, and use it. The kernels belong to the users in turn."""
        began = self._ends_at - self._habits.for_s
        await asyncio.sleep(max(0.0, began + arrival.at_s - time.monotonic()))
        use_s = self._habits.for_s if arrival.duration_s is None else arrival.duration_s
        await self._use(f"user-{number % self._habits.users}", use_s, _ask_for(arrival.request))

    async def _use(self, user: str, use_s: float, wishes: dict[str, str]) -> None:
        """Start a kernel, use it for `use_s` or until the time is over, and stop it."""
        kernel = BenchKernel(self._side)
        try:
            waited_ms = (await kernel.start(KERNEL_USERNAME=user, **wishes))["start"]
            await self._note(kernel, waited_ms)
            self._longest[user] = max(self._longest.get(user, 0.0), waited_ms)
            await asyncio.sleep(min(use_s, max(0.0, self._ends_at - time.monotonic())))
        except NoAnswer as problem:
            self._report.count_failure(self._side.name, str(problem))
        except RoostError as refusal:
            self._refused[str(refusal)] = self._refused.get(str(refusal), 0) + 1
        finally:
            await kernel.stop()

    async def _note(self, kernel: BenchKernel, waited_ms: float) -> None:
        self._done += 1
        self._report.add(f"wait/{self._side.name}", waited_ms, "ms")
        if self._side.is_roost:
            found = await self._side.connect().kernel(kernel.manager.kernel_id)
            self._queued += found.timing_ms.get("queued", 0.0) > _QUEUED_MS


def _ask_for(request: Request) -> dict[str, str]:
    """Return the environment variables of a start with this request."""
    amounts = {
        "KERNEL_CPUS": request.cpus,
        "KERNEL_MEMORY": request.memory_bytes,
        "KERNEL_GPUS": request.gpus,
    }
    return {name: str(amount) for name, amount in amounts.items() if amount}
