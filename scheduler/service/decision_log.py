"""A log of decisions for `roost bench queue`: one line for each kernel that is placed, is refused, or ends.

The private file contains amounts, names and times, but no environment, key or path.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from roost.launchers.protocol.process_log import hide_output
from roost.scheduler.messages import Event, Kernel

log = logging.getLogger(__name__)

FILE_NAME = "decisions.jsonl"
MAX_BYTES = 8 << 20
"""How large the file may become. Then it is renamed to `decisions.jsonl.old`, which replaces an earlier one."""

ASKED = (
    "cpus", "memory_bytes", "gpus", "gpu_models", "gpu_memory_bytes", "labels", "near", "resources", "tolerates",
)  # fmt: skip
"""The fields of a request that the log contains."""
_LONGEST_REASON = 500
_PATH = re.compile(r"(?<![\w.])~?/[^\s'\",;:)]+")


def older_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


class DecisionLog:
    """A listener of the event stream that appends to the file. It never raises: a full disk only loses lines."""

    def __init__(self, folder: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = folder / FILE_NAME
        self._max_bytes = max_bytes
        self._placed: dict[str, Mapping[str, Any]] = {}  # decisions whose lease is not held yet
        self._descriptor: int | None = None
        self._is_failing = False

    def __call__(self, event: Event) -> None:
        """Append a line if the event is a held lease, a refused start or a released lease."""
        kernel, kind = event.kernel, event.kind
        if kernel is None:
            return
        if kind == "placed":
            self._placed[kernel.id] = kernel.decision or {}
        elif kind == "leased":
            decision = self._placed.pop(kernel.id, {})
            policy = decision.get("policy") or kernel.request.policy
            reason = decision.get("reason", "")
            self._append(event, kernel, "placed", reason, policy=policy, devices=list(kernel.device_ids))
        elif kind in ("conflict", "failed", "cancelled", "released"):
            self._placed.pop(kernel.id, None)
            if kind == "released":
                self._append(event, kernel, "ended", kernel.reason or event.detail)
            elif kind == "failed" and not kernel.node_id:
                self._append(event, kernel, "refused", event.detail)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _append(self, event: Event, kernel: Kernel, what: str, reason: str, **more: Any) -> None:
        line = {
            "at": _utc(event.at),
            "what": what,
            "kernel": kernel.id,
            "asked_at": _utc(kernel.created_at),
            "user": kernel.owner.user,
            "policy": kernel.request.policy,
            "node": kernel.node_id,
            "request": {name: getattr(kernel.request, name) for name in ASKED},
            "reason": _PATH.sub("…", hide_output(reason))[:_LONGEST_REASON],
            **more,
        }
        try:
            self._write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            self._is_failing = False
        except (OSError, ValueError, TypeError) as problem:
            if not self._is_failing:
                log.warning("decisions cannot be written to %s: %s", self._path, problem)
            self._is_failing = True

    def _write(self, line: bytes) -> None:
        if self._descriptor is None:
            # A pipe without a reader is refused, and not waited for.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(self._path, flags, 0o600)
        size = os.fstat(self._descriptor).st_size
        if size and size + len(line) > self._max_bytes:
            self.close()
            os.replace(self._path, older_file(self._path))
            self._write(line)
            return
        try:
            if os.write(self._descriptor, line) != len(line):
                raise OSError("the disk is full")
        except OSError:
            os.ftruncate(self._descriptor, size)  # leave no half line behind
            raise


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="milliseconds")
