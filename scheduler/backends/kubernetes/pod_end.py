"""Asks Kubernetes why a pod ends. The watch may show this late."""

from __future__ import annotations

from roost.scheduler.errors import BackendUnavailable

from .api import Api, ApiError, JsonObject
from .creation import path_of
from .pod_state import DELETED, describe_end

_ATTEMPT_S = 1.0
"""How long each of the two attempts of the call may take."""


async def explain_end(api: Api, raw: JsonObject) -> str:
    """Return why this pod ends, as a clause; empty if Kubernetes does not say or does not answer."""
    try:
        now = await api.call("GET", path_of(raw), timeout_s=_ATTEMPT_S)
    except BackendUnavailable:
        return ""
    except ApiError as problem:
        return DELETED if problem.status == 404 else ""
    if now["metadata"]["uid"] != raw["metadata"]["uid"]:
        return DELETED
    ended = describe_end(now)
    return ended.reason if ended else ""
