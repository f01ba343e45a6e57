"""The real use of nodes, from metrics.k8s.io where a metrics server runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from roost.placement import Node
from roost.scheduler.errors import BackendUnavailable

from .api import Api, ApiError, JsonObject
from .quantity import parse_quantity

log = logging.getLogger(__name__)

_EVERY_S = 15.0
"""How long to wait between two readings of the use. A metrics server measures as often as this by default."""
_MISSING_S = 300.0
"""The pause if there are no metrics, or if roost may not read them."""


@dataclass(frozen=True, slots=True)
class Use:
    """The real use of a node, read at `at` on the monotonic clock."""

    cpus: float
    memory_bytes: int
    at: float

    def add_to(self, node: Node) -> Node:
        """Return the node with this use."""
        return replace(
            node,
            cpus_used=self.cpus,
            memory_used_bytes=self.memory_bytes,
            metrics_age_s=max(0.0, time.monotonic() - self.at),
        )


class MetricsReader:
    """Reads the use of all nodes again and again, and gives it to `on_read`: by name, or empty without metrics."""

    def __init__(
        self, api: Api, on_read: Callable[[dict[str, Use]], object], *, every_s: float = _EVERY_S
    ) -> None:
        self._api = api
        self._on_read = on_read
        self._every_s = every_s

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            pause_s = self._every_s
            try:
                answer = await self._api.call("GET", "/apis/metrics.k8s.io/v1beta1/nodes")
                self._on_read(dict(map(_read_use, answer["items"])))
            except ApiError as problem:
                log.info("the real use of nodes is unknown: %s", problem)
                self._on_read({})
                pause_s = _MISSING_S
            except BackendUnavailable as problem:  # old figures show their age
                log.debug("the real use of nodes cannot be read: %s", problem)
            await asyncio.sleep(pause_s)


def _read_use(item: JsonObject) -> tuple[str, Use]:
    usage = item["usage"]
    use = Use(parse_quantity(usage["cpu"]), int(parse_quantity(usage["memory"])), time.monotonic())
    return item["metadata"]["name"], use
