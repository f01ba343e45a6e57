"""The end of a kernel, told by one thread and waited for in any event loop."""

from __future__ import annotations

import asyncio
import threading

UNKNOWN_EXIT_CODE = 255
"""Told for a kernel that is gone where nobody could see its exit code."""


class Exit:
    """Exit code of one launch: None until it is set, once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        self._code: int | None = None

    @property
    def code(self) -> int | None:
        return self._code

    def set(self, code: int | None) -> bool:
        """Set the code (None: it is not known) and wake who waits; False if it was set before. From any thread."""
        with self._lock:
            if self._code is not None:
                return False
            self._code = UNKNOWN_EXIT_CODE if code is None else code
            waiting = list(self._waiting.items())
        for future, loop in waiting:
            try:
                loop.call_soon_threadsafe(_wake, future)
            except RuntimeError:  # that loop was closed while it waited
                continue
        return True

    async def wait(self, timeout_s: float | None = None) -> int | None:
        """The code, as soon as there is one; None after `timeout_s` seconds without."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        with self._lock:
            if self._code is not None:
                return self._code
            self._waiting[future] = loop
        try:
            await asyncio.wait_for(future, timeout_s)
        except asyncio.TimeoutError:
            pass
        finally:
            with self._lock:
                self._waiting.pop(future, None)
        return self._code


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
