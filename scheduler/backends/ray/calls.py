"""Calls to Ray from threads, each with a deadline.

Ray's calls block, some of them for a minute if Ray's head is gone. After its deadline a call is left to end by itself.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from roost.scheduler.backends.agent_per_node.manager import shorten_error
from roost.scheduler.errors import BackendUnavailable, RoostError

T = TypeVar("T")

_CALL_S = 8.0
_THREADS = 32
"""At most this many calls run at a time. A claim occupies a thread while it waits for Ray."""


class RayCalls:
    """A pool of threads for Ray's blocking functions."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ray")

    def close(self) -> None:
        """Start no more calls. Those under way are left alone."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(self, call: Callable[[], T], *, deadline_s: float) -> T:
        """Return the result of `call` or raise its error; raise `asyncio.TimeoutError` after the deadline."""
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.run_in_executor(self._threads, call), deadline_s)

    async def ask(self, question: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Return what `question` returns; raise `BackendUnavailable` if it fails or takes too long."""
        try:
            return await self.run(functools.partial(question, *arguments, **named), deadline_s=_CALL_S)
        except (RoostError, asyncio.CancelledError):
            raise
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Ray has not answered for {_CALL_S:g} s") from None
        except Exception as error:
            raise BackendUnavailable(f"Ray failed: {shorten_error(error)}") from error

    async def answer(self, reference: Any, deadline_s: float, purpose: str) -> Any:
        """Return the result of the Ray task behind `reference`. `purpose` ends an error's sentence ("to start x")."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(reference.future()), deadline_s)
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Ray took longer than {deadline_s:g} s {purpose}") from None
        except Exception as error:
            raise BackendUnavailable(f"Ray failed {purpose}: {shorten_error(error)}") from error
