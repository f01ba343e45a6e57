"""The other holders of a machine that its users share, in sentences."""

from __future__ import annotations

import time

from roost.launchers.protocol.messages import Holder


def describe_holder(holder: Holder, now: float | None = None) -> str:
    """Return a holder and the time since when it holds, to complete "held by"."""
    if holder.is_own:
        kernel = "a kernel of yours in another runtime folder"
    elif holder.user:
        kernel = f"{holder.user}'s kernel"
    else:
        kernel = "another user's kernel"
    since = format_since(holder.since, time.time() if now is None else now)
    return f"{kernel} since {since}" if since else kernel


def format_since(since: float, now: float) -> str:
    """Return a local time, as `10:14` or `2026-11-26 10:14`. Return an empty text for a time that is not known."""
    if since <= 0:
        return ""
    then, today = time.localtime(min(since, now)), time.localtime(now)
    is_today = then[:3] == today[:3]
    return time.strftime("%H:%M" if is_today else "%Y-%m-%d %H:%M", then)
