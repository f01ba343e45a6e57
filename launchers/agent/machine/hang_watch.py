"""Notices that this process did not run for a while, as after SIGSTOP or on a machine that was suspended."""

from __future__ import annotations

import asyncio
import math
import time

_LOOK_S = 0.5
_HANG_S = 12.0
"""A pause of this length between two looks is a hang. Who asks an agent waits for up to 15 s."""
_AFTERWARDS_S = 1.0
"""How long after a hang messages may still come that were sent before its end."""


class HangWatch:
    """A watch over the event loop that calls `run`. Before `run`, nothing counts as a hang."""

    def __init__(self) -> None:
        self._looked_at = math.inf
        self._went_on_at = -math.inf

    async def run(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(_LOOK_S)

    @property
    def has_just_hung(self) -> bool:
        """True if a message that is handled now may have waited for the end of a hang."""
        now = time.monotonic()
        return now - self._looked_at > _HANG_S or now - self._went_on_at < _AFTERWARDS_S

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > _HANG_S:
            self._went_on_at = now
        self._looked_at = now
