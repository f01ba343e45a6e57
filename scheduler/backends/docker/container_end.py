"""Asks the engine why a container has ended."""

from __future__ import annotations

from .container_state import STOPPED, End, describe_end
from .engine import Engine, EngineError

_LINES = 20


async def explain_container(engine: Engine, container_id: str) -> End:
    """Return why a container has ended. Raises `BackendUnavailable`."""
    try:
        found = await engine.call(lambda client: client.inspect_container(container_id))
        printed = await engine.call(lambda client: client.logs(container_id, tail=_LINES))
    except EngineError:  # it was removed
        return End(reason=STOPPED)
    return describe_end(found["State"], printed.decode(errors="replace"))
