"""The limit of open files. A daemon raises its own limit, and gives its children the limit from before."""

from __future__ import annotations

import contextlib
import resource
import sys

_found: tuple[int, int] | None = None  # the limit before it was raised


def raise_limit() -> None:
    """Raise the soft limit of this process to the hard one."""
    global _found
    _found = original_limit()
    with contextlib.suppress(OSError, ValueError):  # the system allows less than the hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (_found[1], _found[1]))


def read_limit() -> int:
    """Return how many files this process may open at the same time."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def original_limit() -> tuple[int, int]:
    """Return the soft and the hard limit of this process as it was started."""
    return _found or resource.getrlimit(resource.RLIMIT_NOFILE)


def restore_limit(pid: int) -> None:
    """Give a child that has just been started the original limit. Some programs need a low one."""
    with contextlib.suppress(OSError):  # it has ended
        resource.prlimit(pid, resource.RLIMIT_NOFILE, original_limit())
