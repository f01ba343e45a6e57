"""The decisions in the service's log: one INFO line for each, once its request is refused or its kernel has ended.

`roost bench placement` reads these lines. They contain amounts, names and times, but no environment, key or path.
"""

from __future__ import annotations

import json
import logging
import re

from roost.scheduler.messages import Event

log = logging.getLogger(__name__)

ASKED = (
    "cpus", "memory_bytes", "gpus", "gpu_models", "gpu_memory_bytes", "labels", "near", "resources", "tolerates",
)  # fmt: skip
"""The fields of a request that a line contains."""
DECISION = re.compile(rf" INFO {re.escape(__name__)} kernel=\S+ decided (\{{.*\}})$", re.MULTILINE)
"""A pattern of these lines. Its group is the JSON of a decision."""


def log_decision(event: Event) -> None:
    """Log a line if the event is a refused request or the end of a kernel. Times are seconds since the epoch."""
    kernel = event.kernel
    if kernel is None or not (event.kind == "released" or (event.kind == "failed" and not kernel.node_id)):
        return
    waited_s = sum(kernel.timing_ms.get(stage, 0.0) for stage in ("queued", "granted")) / 1e3
    line = {
        "asked_at": round(kernel.created_at, 3),
        "placed_at": round(kernel.created_at + waited_s, 3) if event.kind == "released" else None,
        "ended_at": round(event.at, 3),
        "user": kernel.owner.user,
        "node": kernel.node_id,
        "policy": kernel.request.policy,
        "request": {name: getattr(kernel.request, name) for name in ASKED},
    }
    log.info("kernel=%s decided %s", kernel.id, json.dumps(line))
