"""The application that asks for a kernel: who it is, and how it wants to be told what went wrong."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from roost.scheduler.errors import (
    BackendUnavailable,
    Cancelled,
    ConfigError,
    LaunchError,
    LimitExceeded,
    NoNodeEver,
    NoNodeNow,
    NotAllowed,
    RoostError,
)


class CommandNotFound(LaunchError, FileNotFoundError):
    """The kernelspec's command is not there; jupyter_client's callers expect a FileNotFoundError."""


def application(km: Any) -> tuple[str, bool]:
    """Name of the application that holds the manager `km`, and whether it takes its kernels back after a restart."""
    is_server = is_of_jupyter_server(km)
    return ("jupyter_server" if is_server else ""), is_server


def is_of_jupyter_server(km: Any) -> bool:
    """Whether a Jupyter Server holds the manager `km`, found without importing it."""
    kinds = type(getattr(km, "parent", None)).__mro__
    return any(
        kind.__name__ == "MappingKernelManager" and kind.__module__.startswith("jupyter_server.")
        for kind in kinds
    )


def forget_failed_start(km: Any) -> None:
    """Have the manager of many kernels forget the start of `km` once it has failed.

    jupyter_client 8.10 keeps it, and a server that is asked to stop then looks for that kernel, finds none, and
    does not end.
    """
    pending: dict[str, Any] = getattr(getattr(km, "parent", None), "_pending_kernels", {})
    task = pending.get(km.kernel_id)

    def forget(_: object) -> None:
        if pending.get(km.kernel_id) is task:
            del pending[km.kernel_id]

    if isinstance(task, asyncio.Task):
        task.add_done_callback(forget)


@contextmanager
def show_errors_in_jupyter(km: Any) -> Iterator[None]:
    """Jupyter Server shows the text of an HTTPError to the user, and of any other error nothing."""
    try:
        yield
    except RoostError as problem:
        if not is_of_jupyter_server(km) or "tornado.web" not in sys.modules:
            raise
        from tornado.web import HTTPError

        # Without the chain: what Jupyter logs should be the sentence, not our stack.
        raise HTTPError(_status(problem), problem.user_message) from None


def _status(problem: RoostError) -> int:
    """The HTTP status that says whose turn it is: the caller's (4xx), or to try again later (503)."""
    for kinds, status in _STATUSES:
        if isinstance(problem, kinds):
            return status
    return 500


_STATUSES: tuple[tuple[type[RoostError] | tuple[type[RoostError], ...], int], ...] = (
    ((NotAllowed, LimitExceeded), 403),
    ((ConfigError, NoNodeEver), 400),
    (Cancelled, 409),
    ((NoNodeNow, BackendUnavailable), 503),
)
