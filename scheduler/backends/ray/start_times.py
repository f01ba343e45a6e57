"""How long the last starts of new nodes took, by node type. A file keeps them for the next service."""

from __future__ import annotations

import logging
from pathlib import Path

from roost.launchers.daemon.file_input import take_json
from roost.launchers.daemon.private_files import write_private_json

log = logging.getLogger(__name__)

_KEPT = 5
"""At most this many starts of each type are kept."""
_MOST_TYPES = 1_000


class StartTimes:
    """The seconds of the last starts by type, the newest last. Without a `file` they are forgotten with the service."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        found = take_json(file, log) if file is not None else None
        self._took_s = {
            name: [float(each) for each in took_s if isinstance(each, (int, float)) and each >= 0][-_KEPT:]
            for name, took_s in list((found or {}).items())[:_MOST_TYPES]
            if isinstance(took_s, list)
        }

    def __bool__(self) -> bool:
        """True if a start of any type is known."""
        return any(self._took_s.values())

    def of(self, node_type: str) -> tuple[float, ...]:
        return tuple(self._took_s.get(node_type, ()))

    def add(self, node_type: str, took_s: float) -> None:
        """Note a start. A file that cannot be written is reported in the log."""
        self._took_s[node_type] = [*self._took_s.get(node_type, ()), round(took_s, 1)][-_KEPT:]
        try:
            if self._file is not None:
                write_private_json(self._file, self._took_s)
        except OSError as problem:
            log.warning("%s cannot be written: %s", self._file, problem.strerror)
