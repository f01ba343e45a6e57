"""Rounds of random faults while kernels live. Only some faults may end a kernel. Nothing may be left.

ROOST_OUTAGES is the number of rounds. ROOST_OUTAGES_SEED repeats the rounds of an earlier run, which prints its seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import psutil

from kit.clusters.faults import ClusterWorld, assert_plain, say, until
from kit.jupyter.notebook import Notebook
from roost.scheduler.errors import RoostError, UnknownKernel

ROUNDS = int(os.environ.get("ROOST_OUTAGES", "6"))
SEED = int(os.environ.get("ROOST_OUTAGES_SEED") or random.randrange(10_000))
TIMEOUT_S = 300 + 180 * ROUNDS

Repair = Callable[[], object] | None


class ClusterOutages:
    """Rounds of random faults while two kernels live: one with a GPU, and one on the spare node.

    Faults can switch off the spare node. `dice` chooses the faults. The class for a cluster manager overrides the class
    variables, `processes` and `break_part`.
    """

    faults: Mapping[str, int] = {}
    """The faults, and how often each is chosen."""
    ends_victim: Sequence[str] = ()
    """The faults that end the kernel that they hit (the victim)."""
    ends_spare: Sequence[str] = ()
    """The faults that end the kernel on the spare node."""
    first: Sequence[str] = ()
    """The faults that need the manager. They come first in a round."""
    covers: Mapping[str, Sequence[str]] = {}
    """By fault: other faults that a round leaves out if this fault is in it."""
    spare: Mapping[str, Any] = {}
    """The request of kernels for the spare node."""
    back_s = 120.0
    """How long the cluster may take until it is whole again."""

    def __init__(self, world: ClusterWorld) -> None:
        self.world = world
        self.dice = random.Random(SEED)
        self.notebooks: list[Notebook] = []

    async def processes(self, notebook: Notebook) -> list[psutil.Process]:
        """Return the processes of a kernel's pod or container, the agent first."""
        raise NotImplementedError

    async def break_part(self, fault: str, victim: Notebook, processes: list[psutil.Process]) -> Repair:
        """Cause a fault. Return a function that repairs it, or None if it repairs itself."""
        raise NotImplementedError

    async def until_settled(self) -> None:
        """Wait, before a round, until the cluster manager itself knows all kernels. By default do nothing."""

    async def run(self) -> None:
        """Open the two kernels, and run all rounds."""
        for config in ({"gpus": 1}, self.spare):
            self.notebooks.append(await self.world.open(**config))
        for number in range(ROUNDS):
            await self._round(number + 1)

    async def _round(self, number: int) -> None:
        """Cause one or two faults at once, perhaps while a kernel starts, and check the recovery."""
        dice = self.dice
        faults = dice.sample(list(self.faults), counts=list(self.faults.values()), k=dice.choice((1, 1, 2)))
        faults = sorted(dict.fromkeys(faults), key=lambda fault: fault not in self.first)
        covered = {other for fault in faults for other in self.covers.get(fault, ())}
        faults = [fault for fault in faults if fault not in covered]
        is_starting = dice.random() < 0.5
        say(f"round {number}: {' and '.join(faults)}{', while a kernel starts' if is_starting else ''}")
        await self.until_settled()
        starting = self.world.notebook(**self.spare) if is_starting else None
        opening = asyncio.create_task(starting.open()) if starting else None
        if opening:
            await asyncio.sleep(dice.uniform(0, 2.5))
        down_s, victim = dice.uniform(0.5, 12), dice.choice(self.notebooks)
        processes = await self.processes(victim)
        repairs = [await self.break_part(fault, victim, processes) for fault in faults]
        await asyncio.sleep(down_s if any(repairs) else 1)
        for repair in filter(None, repairs):
            await asyncio.to_thread(repair)
        began = time.monotonic()
        for notebook in self.notebooks:
            must_end = notebook is victim and set(faults) & set(self.ends_victim)
            if notebook is self.notebooks[1]:
                must_end = must_end or set(faults) & set(self.ends_spare)
            await (self._has_ended(notebook, faults) if must_end else self._is_kept(notebook))
        if starting and opening:
            await self._outcome(starting, opening)
        await self.world.has_room(**self.spare, within_s=self.back_s)
        await self.world.has_room(gpus=1, within_s=self.back_s)
        await until(lambda: len(self.world.held()) == 2, "only two pods or containers are left", self.back_s)
        await self.world.lives(*self.notebooks)
        say("whole after", began)

    async def _is_kept(self, notebook: Notebook) -> None:
        assert await notebook.value("mine") == "42"

    async def _has_ended(self, notebook: Notebook, faults: list[str]) -> None:
        """Wait until the owner learns why the kernel has ended, and restart the kernel."""
        began = time.monotonic()
        try:
            reason = await self.world.ended(notebook, self.back_s)
        except UnknownKernel as problem:  # the service was away until the pod or container was gone
            if "service" not in faults:
                raise
            reason = problem.user_message
        say(f"{reason!r} after", began)
        config = self.spare if notebook is self.notebooks[1] else {"gpus": 1}
        await self.world.has_room(within_s=self.back_s, **config)
        await self.world.restart(notebook)

    async def _outcome(self, starting: Notebook, opening: asyncio.Task[None]) -> None:
        """Check that a start under a fault succeeds, or fails with one plain sentence. Close its kernel."""
        try:
            await asyncio.wait_for(opening, self.back_s)
        except RoostError as problem:
            say(f"the start failed: {problem.user_message}")
            assert_plain(problem.user_message)
        else:
            await self._is_kept_or_ended(starting)
        self.world.opened.remove(starting)

    async def _is_kept_or_ended(self, notebook: Notebook) -> None:
        with contextlib.suppress(TimeoutError):  # it may end before it answers
            assert await notebook.value("1 + 1") == "2"
            await notebook.close()
            return
        kernel = await self.world.kernel_of(notebook)
        assert kernel.state == "exited"
        assert_plain(kernel.reason)
        await notebook.close()
