"""What earlier services have seen of the hosts. So the first start of a morning need not wait for all of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from roost.launchers.daemon.file_input import put_aside, take_json
from roost.launchers.daemon.private_files import write_private_json
from roost.launchers.daemon.tasks import Timers
from roost.placement import Node
from roost.placement.model.json_codec import WireError, decode, encode

log = logging.getLogger(__name__)

_SAVE_S = 1.0
"""How long a change may wait for others before the file is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRecord:
    """A host as a service has seen it."""

    machine: str
    node: Node
    seen_at: float
    """When that was (Unix time)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    hosts: Mapping[str, HostRecord]


class HostMemory:
    """The records of the hosts, by name, in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._records: dict[str, HostRecord] = {}
        self._timers = Timers()

    def load(self) -> Mapping[str, HostRecord]:
        """Return the records of earlier services."""
        try:
            found = decode(_Saved, take_json(self._file, log) or {"hosts": {}}, ignore_unknown=True)
        except WireError as problem:
            put_aside(self._file, f"has no hosts that can be read: {problem}", log)
        else:
            self._records = dict(found.hosts)
        return dict(self._records)

    def note(self, name: str, record: HostRecord) -> None:
        self._records[name] = record
        if "save" not in self._timers:
            self._timers.later(_SAVE_S, self._save, key="save")

    def close(self) -> None:
        """Write what is not written yet."""
        if "save" in self._timers:
            self._timers.close()
            self._save()

    def _save(self) -> None:
        try:
            write_private_json(self._file, encode(_Saved(hosts=self._records)))
        except OSError as problem:
            log.warning("%s cannot be written: %s", self._file, problem)
