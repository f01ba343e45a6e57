"""The cluster that this service serves, among the services of this user."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from roost.launchers.daemon.daemon import is_alive
from roost.launchers.daemon.tasks import in_thread
from roost.scheduler.backends.base import Backend
from roost.scheduler.client.cluster_record import (
    ClusterRecord,
    find_folders,
    has_history,
    read_place,
    read_record,
    refer,
    share_place,
    write_place,
    write_record,
)
from roost.scheduler.errors import ConfigError, RoostError, ServedElsewhere

log = logging.getLogger(__name__)

_ANSWER_S = 3.0
"""How long another cluster may take to accept a connection."""
_SETTINGS_S = 5.0
"""How long the backend may take to find the cluster that its settings name."""


class ServedCluster:
    """Writes the record of a service's cluster, unless another service of this user serves that cluster.

    A service that serves kernels of its own goes on in any case, because nobody else would. `roost doctor` then names
    both services.
    """

    def __init__(self, folder: Path, name: str, backend: Backend, options: Mapping[str, Any]) -> None:
        """Make the cluster of the service of this folder. `name` is the backend's name in kernelspecs."""
        self._folder = folder
        self._name = name
        self._backend = backend
        self._options = options
        self._written: ClusterRecord | None = None

    async def check_settings(self) -> None:
        """Refer to another service if the settings name a cluster that it serves, or that it has served.

        The cluster is not asked, so it may be down. Raises `ServedElsewhere`.
        """
        if has_history(self._folder):
            return
        try:
            places = await in_thread(self._backend.places, deadline_s=_SETTINGS_S)
        except (RoostError, asyncio.TimeoutError):
            return  # `open` raises the same error
        self._refer(self._build_record(places), only_running=False)

    def claim(self, *, has_kernels: bool) -> None:
        """Write the record of the cluster that was joined. Raises `ServedElsewhere` if it is served already."""
        record = self._build_record(self._backend.places())
        if not record.places and not record.cluster_id:
            return
        with _locked(self._folder.parent):  # two services that start at once see each other's records
            if not has_kernels:
                self._refer(record, only_running=True)
            self._write(record)

    def renew(self) -> None:
        """Write the record again after the cluster was joined again: it may have another address by now."""
        self._write(self._build_record(self._backend.places()))

    def _refer(self, record: ClusterRecord, *, only_running: bool) -> None:
        for other in find_folders(record, but=self._folder):
            if is_alive(other) or not only_running:
                # Without an address, the name means another cluster after another setting.
                is_named = bool(read_place(self._name, self._options))
                refer(self._folder, other, cluster_id=record.cluster_id if is_named else "")
                raise ServedElsewhere(
                    f"the service of {other} serves this cluster ({', '.join(record.places)}) already"
                )

    def _build_record(self, places: Sequence[str]) -> ClusterRecord:
        given = read_place(self._name, self._options)
        spelled = dict.fromkeys([given, *map(write_place, places)])
        spelled.pop("", None)
        return ClusterRecord(
            backend=self._name,
            cluster_id=self._backend.cluster_id,
            places=tuple(spelled),
            options=dict(self._options),
        )

    def _write(self, record: ClusterRecord) -> None:
        if record == self._written:
            return
        try:
            write_record(self._folder, record)
        except OSError as problem:
            log.warning("other names of the cluster do not lead to this service: %s", problem)
        else:
            self._written = record


def check_other_place(folder: Path, places: Sequence[str]) -> str:
    """Return the cluster that the settings name, if this folder's service has not served it; usually empty.

    `places` are those of the backend, of which the first is that of the settings. Raises `ConfigError` if nothing
    answers at that other cluster. Blocks for `_ANSWER_S` at most.
    """
    record, named = read_record(folder), write_place(next(iter(places), ""))
    if record is None or not record.places or not named or share_place(record.places, [named]):
        return ""
    if not _answers(named):
        served = " or ".join(record.places)
        raise ConfigError(
            f"The settings name the cluster at {named}, where nothing answers. Until now it was {served}."
        )
    return named


def _answers(place: str) -> bool:
    address = urlsplit(f"//{place}")
    try:
        socket.create_connection((address.hostname or "", address.port or 0), timeout=_ANSWER_S).close()
    except OSError:
        return False
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of all services of the user. They hold it for milliseconds."""
    descriptor = os.open(
        folder / "clusters.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
