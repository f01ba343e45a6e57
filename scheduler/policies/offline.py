"""Decisions on a saved snapshot, without a cluster and a service. The policy may be in any file or module."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

from roost.placement import Decision, Request, Snapshot
from roost.scheduler.config.settings import Settings
from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import read_input_json

from .catalog import PolicyCatalog
from .explain import build_explanation
from .recent_requests import RecentRequests

_MOST_SNAPSHOT_BYTES = 512 << 20


def explain_saved(path: str, request: Request, settings: Settings | None = None) -> dict[str, Any]:
    """Return the explanation (`build_explanation`) of a request on the snapshot in a file; raises `ConfigError`."""
    snapshot = read_snapshot(path)
    # errors describe failures; no stack on stderr
    logging.getLogger("roost").addHandler(logging.NullHandler())
    return build_explanation(asyncio.run(_decide(request, snapshot, settings or Settings())), snapshot)


def read_snapshot(path: str) -> Snapshot:
    """Read the nodes that `roost nodes --json` printed; raises `ConfigError`."""
    document = read_input_json(path, most_bytes=_MOST_SNAPSHOT_BYTES)
    try:
        return Snapshot.from_dict(document)
    except ValueError as problem:
        raise ConfigError(f"{path} is not a saved snapshot: {str(problem).rstrip('.')}.") from None


async def _decide(request: Request, snapshot: Snapshot, settings: Settings) -> Decision:
    settings = settings.with_values(default_policy=request.policy or settings.default_policy)
    policies = PolicyCatalog(settings, RecentRequests(None, clock=time.monotonic))
    try:
        await policies.load(settings.default_policy)
        return await policies.decide(settings.default_policy, request, snapshot)
    finally:
        await policies.close()
