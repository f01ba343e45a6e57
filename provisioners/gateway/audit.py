"""The audit file: one line of JSON for each start, refusal and end, and for what else an operator has to know.

No line has a token, or the value of a variable.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roost.scheduler.client.state_folder import state_folder

_MODE = 0o640
_MOST_CHARACTERS = 500
"""At most this much of a text is written."""
_UNKNOWN_S = 1.0
"""The least time between two lines about unknown callers."""


class Audit:
    """The audit file of one gateway. It is opened for each line, so that it can be rotated."""

    def __init__(
        self, path: str, log: logging.Logger, *, source: str = "", now: Callable[[], float] = time.time
    ) -> None:
        self.path = Path(path) if path else state_folder("gateway") / "audit.jsonl"
        self._log = log
        self._source = source
        self._now = now
        self._unknown_at = 0.0

    def write(self, what: str, *, outcome: str = "done", **facts: Any) -> None:
        """Write one line. Facts without a value are left out. A file that cannot be written is only a warning."""
        given = {name: _cut(fact) for name, fact in facts.items() if fact not in ("", None)}
        line = {
            "at": round(self._now(), 3),
            "what": what,
            "outcome": outcome,
            "source": self._source,
            **given,
        }
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.path, flags, _MODE)
            try:
                os.write(descriptor, json.dumps(line).encode() + b"\n")
            finally:
                os.close(descriptor)
        except OSError as problem:
            self._log.warning("roost: the audit file %s cannot be written: %s", self.path, problem.strerror)

    def write_unknown(self, address: str, sentence: str) -> None:
        """Write a line about a caller whom nobody knows, unless the last one was just before."""
        if self._now() - self._unknown_at >= _UNKNOWN_S:
            self._unknown_at = self._now()
            self.write("unknown token", outcome="refused", address=address, sentence=sentence)


def _cut(fact: Any) -> Any:
    return fact[:_MOST_CHARACTERS] if isinstance(fact, str) else fact
