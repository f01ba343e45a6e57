"""The one stream of state changes. Clients, the log and metrics all read it."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from roost.launchers.protocol.process_log import hide_output
from roost.scheduler.messages import Event, EventKind, Kernel

log = logging.getLogger(__name__)

HISTORY = 1_000
_WARNINGS: frozenset[EventKind] = frozenset({"conflict", "failed", "cull", "warned"})


class EventStream:
    """A stream of events to a bounded history, the log and the listeners, in this order."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._listeners: list[Callable[[Event], None]] = []

    def publish(self, kind: EventKind, kernel: Kernel | None = None, detail: str = "") -> None:
        """Publish an event without the kernel's connection, which has keys. Only `placed` events have its decision."""
        if kernel is not None:
            decision = kernel.decision if kind == "placed" else None
            kernel = kernel.without_keys()
            if kernel.decision is not decision:
                kernel = replace(kernel, decision=decision)
        event = Event(kind=kind, at=self._clock(), kernel=kernel, detail=detail)
        self._history.append(event)
        level = logging.WARNING if kind in _WARNINGS else logging.INFO
        if kernel is None:
            log.log(level, "%s %s", kind, hide_output(detail))
        else:
            node_id = kernel.node_id or "-"
            log.log(level, "kernel=%s node=%s %s %s", kernel.id, node_id, kind, hide_output(detail))
        for listener in list(self._listeners):
            listener(event)

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call `listener` with every event from now on; return a function that stops this.

        `listener` must not raise.
        """
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop

    def recent(self, limit: int = 100) -> list[Event]:
        """Return the last `limit` events, oldest first."""
        return list(self._history)[-limit:] if limit > 0 else []
