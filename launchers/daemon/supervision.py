"""Background tasks that must not end before their process does: watches, readers and periodic looks."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any

from .tasks import backoff, spawn

_AGAIN_S = (1.0, 60.0)
"""First and longest pause before a failed task runs again."""
_CALM_S = 300.0
"""A failure counts as over if the task has not failed again for so long."""
_failures: dict[str, tuple[str, float]] = {}
"""The latest error of each task that has failed, by its work, with the time (`time.monotonic`)."""


def keep_running(
    run: Callable[[], Coroutine[Any, Any, None]],
    tasks: set[asyncio.Task[Any]],
    log: logging.Logger,
    what: str,
) -> asyncio.Task[None]:
    """Start a background task. After an error it runs again, with growing pauses, until it returns.

    `what` names its work in the log and for `list_failures`, such as "the look at idle kernels". Each error is logged
    once. `tasks` refers to the task until its end.
    """

    async def keep() -> None:
        pauses = backoff(*_AGAIN_S)
        while True:
            try:
                await run()
                return
            except Exception as problem:
                text, now = f"{type(problem).__name__}: {problem}", time.monotonic()
                before, failed_at = _failures.get(what, ("", -_CALM_S))
                if now - failed_at >= _CALM_S:
                    pauses, before = backoff(*_AGAIN_S), ""
                if text != before:
                    log.exception("%s failed, and is tried again", what)
                _failures[what] = text, now
            await asyncio.sleep(next(pauses))

    return spawn(keep(), tasks, log)


def list_failures() -> dict[str, str]:
    """Return the errors of this process's tasks that have failed lately, by their work."""
    now = time.monotonic()
    return {what: text for what, (text, failed_at) in _failures.items() if now - failed_at < _CALM_S}
