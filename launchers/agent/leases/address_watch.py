"""The agent's watch on a daemon of the cluster manager, if the agent knows only the daemon's address."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from .manager_watch import answers

log = logging.getLogger(__name__)

_MAX_INTERVAL_S = 30.0


async def watch_address(
    address: str,
    name: str,
    folder: Path,
    grace_s: float,
    on_lost: Callable[[str], Awaitable[None]],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Connect to `address` (`host:port`) from time to time. Call `on_lost` once it has not answered for `grace_s`.

    `on_lost` gets the reason, with the daemon's `name`. This also calls `on_lost` once the agent's `folder` is gone. A
    daemon that was started again removes the folder of an agent that it does not know.
    """
    interval_s = min(grace_s / 10, _MAX_INTERVAL_S)
    answered_at = clock()
    while True:
        is_there, now = await answers(address), clock()
        # The folder decides before the answer: a daemon that was started again answers, too.
        if not folder.exists():
            reason = f"the {name} of its node was started again and has forgotten its container"
            break
        if is_there:
            answered_at = now
        elif now - answered_at >= grace_s:
            reason = f"the {name} of its node has not answered for {grace_s:g} s"
            break
        await sleep(interval_s)
    log.warning("all leases are lost: %s", reason)
    await on_lost(reason)
