"""Reports what a start waits for: its place in the queue, the reason, and what would make room soonest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from roost.placement.model.format import format_age
from roost.provisioners.exit_watch import describe_wait
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import Kernel

from .pending_start import PendingStart

_FIRST_AFTER_S = 0.3
"""How long a start must take before its first report, so that people have time to read the report."""
_PAUSE_S = 1.0
"""The least time between two reports about one start."""
_AGAIN_S = 10.0
"""A report is repeated after this time, because the kernels that hold the resources may have changed."""
_EXPLAINED_WITHIN_S = 0.5
"""How long a report waits for the explanation. Without it, the report has only the place and the reason."""


class WaitingReport:
    """The reports about one start. It calls `show` with the text of each report."""

    def __init__(self, start: PendingStart, show: Callable[[str], None]) -> None:
        self._start = start
        self._show = show

    async def run(self) -> None:
        """Report until the task is cancelled."""
        await asyncio.sleep(_FIRST_AFTER_S)
        if self._start.waiting is None:
            self._show("Waiting for a place to run.")
        while True:
            changed = self._start.changed
            if (kernel := self._start.waiting) is not None:
                self._show(await self._describe(kernel))
                await asyncio.sleep(_PAUSE_S)
            await self._wait_for(changed)

    async def _wait_for(self, changed: asyncio.Event) -> None:
        """Wait until the state of the waiting start has changed, or `_AGAIN_S` has passed.

        This does not use `asyncio.wait_for`, which may lose a cancellation on Python <= 3.11.
        """
        change = asyncio.ensure_future(changed.wait())
        try:
            await asyncio.wait([change], timeout=_AGAIN_S)
        finally:
            change.cancel()

    async def _describe(self, kernel: Kernel) -> str:
        text = describe_wait(kernel)
        if kernel.state != "queued" or kernel.is_pending:
            return text
        with suppress(RoostError, asyncio.TimeoutError):
            explanation = self._start.km.provisioner.service.explain(kernel.request, kernel.kernel_name)
            decision = await explanation.within(_EXPLAINED_WITHIN_S)
            more = describe_holders(decision, time.time(), names_kernels=self._start.shows_others)
            text = " ".join([text, *more])
        return text


def describe_holders(decision: Mapping[str, Any], now: float, *, names_kernels: bool = True) -> list[str]:
    """Return sentences about what holds the resources: others than roost, and the kernels that could make room.

    Without `names_kernels`, name neither kernels nor users.
    """
    others, soonest = decision.get("others"), decision["soonest"]
    if not names_kernels:
        return [f"There is room on {soonest['node_id']} when another kernel ends."] if soonest else []
    sentences = [f"{others['text']}."] if others else []
    return [*sentences, describe_soonest(soonest, now)] if soonest else sentences


def describe_soonest(soonest: Mapping[str, Any], now: float) -> str:
    """Return which kernels would make room if they ended, as a sentence."""
    kernels, node_id = soonest["kernels"], soonest["node_id"]
    named = [_describe_holder(each, now) for each in kernels[:3]]
    if len(kernels) == 1:
        return f"There is room on {node_id} when kernel {named[0]} ends."
    more = f" and {len(kernels) - 3} more" if len(kernels) > 3 else ""
    return f"There is room on {node_id} when these kernels end: {', '.join(named)}{more}."


def _describe_holder(kernel: Mapping[str, Any], now: float) -> str:
    since = kernel["since"]
    age = "" if since is None else f" (running for {format_age(now - since)})"
    return f"{kernel['id'][:8]} of {kernel['user']}{age}"
