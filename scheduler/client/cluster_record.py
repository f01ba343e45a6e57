"""Which cluster a service serves, as a record in its folder. By the record, other names of the cluster lead there.

`RAY_ADDRESS`, an option, a setting and "the cluster of this machine" can name one cluster. Each name has a folder of
its own (`service_folder`), but only one of these folders has a service:

    a client  ── an address that a record has ──────────────────────────> that folder
              └─ any other name ──> the name's folder, whose service knows more: the settings, and the cluster's own id
                                       └── served elsewhere? It writes a referral, and leaves ──> that folder

The records contain addresses as text. Host names are compared with the addresses that they have now.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from roost.launchers.daemon.daemon import is_alive, read_announcement
from roost.launchers.daemon.private_files import read_json, write_private_json
from roost.launchers.daemon.tasks import start_thread
from roost.scheduler.backends.registry import get_spec

_RECORD = "cluster.json"
_REFERRAL = "referral.json"
_AGENTS = "agents.json"
_LOOK_UP_S = 0.5
"""How long all host names of one search may take."""
_KEEP_S = 30.0
"""How long the addresses of a host name are kept."""
_PORTS = {"http": 80, "https": 443}
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterRecord:
    """The cluster of one service."""

    backend: str
    cluster_id: str
    """The cluster's own identity; empty if it has none. A cluster that is started again may have another one."""
    places: tuple[str, ...]
    """The addresses that have named the cluster, as `write_place` writes them."""
    options: Mapping[str, Any]
    """The options with which the service was started."""

    def is_same_cluster(self, other: ClusterRecord) -> bool:
        """True if both are one cluster, by its identity or an address. Takes `_LOOK_UP_S` at most.

        A cluster that is started again has the same address, and may have another identity.
        """
        if self.backend != other.backend:
            return False
        is_one = bool(self.cluster_id) and self.cluster_id == other.cluster_id
        return is_one or share_place(self.places, other.places)

    def has_options(self, options: Mapping[str, Any]) -> bool:
        """True if the options are those of this service. The address of the cluster does not count."""
        return _without_address(self.options) == _without_address(options)


def write_place(address: str) -> str:
    """Return an address as `host:port` with an optional path, in one spelling. Empty for any other text."""
    text = address.strip()
    try:
        parts = urlsplit(text if "://" in text else f"//{text}")
        host, port = (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme)
    except ValueError:
        return ""
    if not host or not port:
        return ""
    host = _LOOPBACK if host in ("localhost", "::1") else host
    end = f":{port}{parts.path.rstrip('/')}"
    return f"[{host}]{end}" if ":" in host else host + end


def read_place(backend: str, options: Mapping[str, Any]) -> str:
    """Return the place that these options name; empty if they name none, or if the backend refuses their address."""
    address = str(options.get("address", ""))
    return write_place(address) if "://" not in address or get_spec(backend).address_may_be_url else ""


def share_place(some: Iterable[str], others: Iterable[str]) -> bool:
    """True if one of the places is among the others, also under another name of its host. Takes `_LOOK_UP_S` at most.

    A host name that cannot be looked up in that time has no other name.
    """
    some, others = set(filter(None, some)), set(filter(None, others))
    if some & others:
        return True
    ends = {_split(place)[1] for place in some} & {_split(place)[1] for place in others}
    pairs = [[_split(place)[0] for place in places if _split(place)[1] in ends] for places in (some, others)]
    if not all(pairs):
        return False
    found = _look_up({host for hosts in pairs for host in hosts})
    return any(
        _split(one)[1] == _split(other)[1] and found[_split(one)[0]] & found[_split(other)[0]]
        for one in some
        for other in others
        if _split(one)[1] in ends
    )


def _split(place: str) -> tuple[str, str]:
    """Return the host of a place, and the rest: port and path."""
    end = place.find(":", place.find("]") + 1)
    return place[:end].strip("[]"), place[end:]


_known: dict[str, tuple[float, frozenset[str]]] = {}


def _look_up(hosts: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return the IP addresses of each host, and its name. The threads of names that hang are left alone."""
    now = time.monotonic()
    wanted = set(hosts)
    asked = {
        host: start_thread(lambda host=host: _ask(host), name="roost-look-up")  # type: ignore[misc]
        for host in wanted
        if _known.get(host, (0.0, frozenset()))[0] < now
    }
    concurrent.futures.wait(asked.values(), _LOOK_UP_S)
    for host, answer in asked.items():
        in_time = answer.done() and answer.exception() is None
        _known[host] = now + _KEEP_S, frozenset(answer.result() if in_time else ()) | {host}
    return {host: _known[host][1] for host in wanted}


def _ask(host: str) -> set[str]:
    return {str(answer[4][0]) for answer in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}


def read_record(folder: Path) -> ClusterRecord | None:
    """Return the record of a service's folder; None if there is none, or none that can be used."""
    found = read_json(folder / _RECORD)
    try:
        return ClusterRecord(
            backend=str(found["backend"]),
            cluster_id=str(found["cluster_id"]),
            places=tuple(map(str, found["places"])),
            options=dict(found["options"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def write_record(folder: Path, record: ClusterRecord) -> None:
    write_private_json(folder / _RECORD, asdict(record))
    (folder / _REFERRAL).unlink(missing_ok=True)


def has_history(folder: Path) -> bool:
    """True if a service has served in this folder."""
    return (folder / _RECORD).exists() or (folder / _AGENTS).exists()


def find_folders(record: ClusterRecord, *, but: Path) -> list[Path]:
    """Return the folders of other services for this cluster with these options: the running ones first."""
    found = [
        folder
        for folder in sorted(but.parent.glob(f"scheduler-{record.backend}*"))
        if folder != but and (other := read_record(folder)) is not None and _is_alike(record, other)
    ]
    return sorted(found, key=lambda folder: not is_alive(folder))


def find_twins(folder: Path) -> dict[Path, ClusterRecord]:
    """Return the running services that serve the cluster of this folder's service, with any options."""
    own = read_record(folder)
    found: dict[Path, ClusterRecord] = {}
    for other in sorted(folder.parent.glob(f"scheduler-{own.backend}*")) if own is not None else ():
        record = read_record(other) if other != folder and is_alive(other) else None
        if own is not None and record is not None and own.is_same_cluster(record):
            found[other] = record
    return found


def _is_alike(record: ClusterRecord, other: ClusterRecord) -> bool:
    return record.has_options(other.options) and record.is_same_cluster(other)


def find_served(own: Path, backend: str, options: Mapping[str, Any]) -> Path | None:
    """Return another folder whose service serves the cluster that these options name; None to use the folder `own`.

    Blocks for `_LOOK_UP_S` at most. Nothing is asked but files and the names of hosts, so the cluster may be down.
    """
    if is_alive(own):
        return None
    if (referred := _follow(own)) is not None:
        return referred
    place = read_place(backend, options)
    if not place:
        return None
    wanted = ClusterRecord(backend=backend, cluster_id="", places=(place,), options=options)
    for folder in find_folders(wanted, but=own):
        if is_alive(folder) or not has_history(own):
            return folder
    return None


def refer(own: Path, target: Path, *, cluster_id: str = "") -> None:
    """Lead the clients of the folder `own` to the service of the folder `target`, for as long as that process lives.

    With a `cluster_id`, later services of `target` are meant too, as long as they serve that cluster.
    """
    found = {"folder": target.name, "process": _read_process(target), "cluster_id": cluster_id}
    write_private_json(own / _REFERRAL, found)


def _read_process(folder: Path) -> list[Any] | None:
    """Return what identifies the process of a folder's service; None if none runs."""
    announced = read_announcement(folder)
    return [announced["pid"], announced.get("process_started_at")] if announced is not None else None


def read_referral(own: Path) -> Path | None:
    """Return the folder to which a service of the folder `own` has referred, running or not."""
    found = read_json(own / _REFERRAL)
    name = found.get("folder") if isinstance(found, dict) else None
    is_name = isinstance(name, str) and name.startswith("scheduler-") and os.sep not in name
    return own.parent / str(name) if is_name else None


def _follow(own: Path) -> Path | None:
    target = read_referral(own)
    process = _read_process(target) if target is not None else None
    if target is None or process is None:
        return None
    found = read_json(own / _REFERRAL) or {}
    if found.get("process") == process:
        return target
    record = read_record(target) if found.get("cluster_id") else None
    return target if record is not None and record.cluster_id == found["cluster_id"] else None


def _without_address(options: Mapping[str, Any]) -> str:
    """Return the options but the address as text, because a path becomes text on its way to the service."""
    others = {name: value for name, value in options.items() if name != "address" and value is not None}
    return json.dumps(others, sort_keys=True, default=str)
