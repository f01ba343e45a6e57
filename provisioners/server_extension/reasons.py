"""The sentences that tell a notebook's user why a kernel did not start, or has ended."""

from __future__ import annotations

from typing import Any

from tornado.web import HTTPError

from roost.scheduler.errors import RoostError


def describe_end(km: Any) -> str:
    """Return the reason of a roost kernel's latest end, as a sentence; empty for others, or without an end."""
    reason = getattr(km.provisioner, "end_reason", "")
    return f"{reason[0].upper()}{reason[1:].rstrip('.')}." if reason else ""


def describe(problem: BaseException | None) -> str:
    """Return the sentence that tells a user why a start has failed."""
    if isinstance(problem, HTTPError):
        return str(problem.log_message or problem.reason)
    if isinstance(problem, RoostError):
        return problem.user_message
    return str(problem) or type(problem).__name__
