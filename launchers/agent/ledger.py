"""The ledger of one node: what has been handed out, kept in files so that it outlives the agent.

On this machine it is the arbiter: however many schedulers ask, no resource and no device is promised beyond
what there is. Pure bookkeeping: no clock, no sockets.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from roost.launchers.daemon.private_files import read_json, write_private_json
from roost.launchers.protocol.json_codec import WireError, decode, encode
from roost.launchers.protocol.messages import DeviceStatus, Owner, Reservation, Reserve

log = logging.getLogger(__name__)

_EPSILON = 1e-6
"""Shares are sums of floats: ten times 0.1 fits into 1."""


class Conflict(Exception):
    """The ledger cannot grant a reservation now; the text says what is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Amounts:
    """What of a reservation counts, as far as it can be read in one that has another form than ours."""

    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: float = 0.0
    device_ids: tuple[str, ...] = ()


class Ledger:
    """Reservations by lease id, over fixed totals. `version` grows with each change.

    Of `devices`, the node's GPUs, ids and models count. A file that cannot be read (of another version, damaged)
    is kept until its lease is released: a kernel may live in it. As far as its amounts can be read, they stay
    promised.
    """

    def __init__(
        self, folder: Path, *, cpus: float, memory_bytes: int, devices: Sequence[DeviceStatus]
    ) -> None:
        self.cpus = cpus
        self.memory_bytes = memory_bytes
        self.models = {device.id: device.model for device in devices}
        self.version = 1
        self._folder = folder
        self._reservations: dict[str, Reservation] = {}
        self._unreadable: dict[Path, _Amounts] = {}
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in sorted(folder.glob("*.json")):
            try:
                reservation = decode(Reservation, read_json(path), ignore_unknown=True)
            except WireError as problem:
                log.error("a lease cannot be read, and is kept: %s (%s)", path, problem)
                self._unreadable[path] = _amounts(path)
            else:
                self._reservations[reservation.request.lease_id] = reservation

    def __len__(self) -> int:
        return len(self._reservations)

    def reservations(self) -> tuple[Reservation, ...]:
        """All that is handed out, oldest first."""
        return tuple(self._reservations.values())

    @property
    def unreadable(self) -> tuple[Path, ...]:
        """Files of leases that cannot be read."""
        return tuple(self._unreadable)

    def __contains__(self, lease_id: object) -> bool:
        """Whether there is such a lease, be it one that cannot be read."""
        return isinstance(lease_id, str) and (
            lease_id in self._reservations or self._path(lease_id) in self._unreadable
        )

    def get(self, lease_id: str) -> Reservation | None:
        return self._reservations.get(lease_id)

    def reserve(self, request: Reserve, *, now: float) -> Reservation:
        """Hand a slice out, or raise `Conflict`; `OSError` (a full disk) leaves the ledger as it was."""
        known = self._reservations.get(request.lease_id)
        if known is not None:
            return known
        if request.lease_id in self:
            raise Conflict(f"what lease {request.lease_id} was granted cannot be read; release it")
        granted = request if request.is_granted else replace(request, device_ids=self._grant(request))
        reservation = Reservation(request=granted, reserved_at=now)
        write_private_json(self._path(request.lease_id), encode(reservation))
        self._reservations[request.lease_id] = reservation
        self.version += 1
        return reservation

    def release(self, lease_id: str) -> bool:
        """Take a slice back; False when there is none of that id."""
        if lease_id not in self:
            return False
        self._reservations.pop(lease_id, None)
        self._unreadable.pop(self._path(lease_id), None)
        self._path(lease_id).unlink(missing_ok=True)
        self.version += 1
        return True

    def adopt(self, lease_id: str, owner: Owner) -> None:
        """Have a slice be held for another owner; nothing when there is none of that id."""
        known = self._reservations.get(lease_id)
        if known is not None and known.request.owner != owner:
            held = replace(known, request=replace(known.request, owner=owner))
            write_private_json(self._path(lease_id), encode(held))
            self._reservations[lease_id] = held

    @property
    def cpus_promised(self) -> float:
        return sum(held.cpus for held in self._held())

    @property
    def memory_promised_bytes(self) -> int:
        return sum(held.memory_bytes for held in self._held())

    @property
    def gpus_promised(self) -> float:
        return sum(held.gpus for held in self._held())

    def promised_by_device(self) -> dict[str, float]:
        """Share promised of each device, 0 to 1."""
        promised = dict.fromkeys(self.models, 0.0)
        for held in self._held():
            for device_id in held.device_ids:
                promised[device_id] = promised.get(device_id, 0.0) + min(held.gpus, 1.0)
        return promised

    def _held(self) -> Iterator[Reserve | _Amounts]:
        yield from (reservation.request for reservation in self._reservations.values())
        yield from self._unreadable.values()

    def _grant(self, request: Reserve) -> tuple[str, ...]:
        """The devices for `request`, or `Conflict`."""
        free_cpus = self.cpus - self.cpus_promised
        if request.cpus and request.cpus > free_cpus + _EPSILON:
            raise Conflict(f"{request.cpus:g} CPUs asked for, {max(free_cpus, 0):g} free")
        free_bytes = self.memory_bytes - self.memory_promised_bytes
        if request.memory_bytes and request.memory_bytes > free_bytes:
            raise Conflict(f"{request.memory_bytes} bytes of memory asked for, {max(free_bytes, 0)} free")
        for name, amount in request.resources.items():
            raise Conflict(f"{amount:g} {name} asked for, this machine has none")
        if not request.gpus:
            return ()
        free = {device_id: 1.0 - promised for device_id, promised in self.promised_by_device().items()}
        share = min(request.gpus, 1.0)
        fitting = [
            device_id
            for device_id, model in self.models.items()
            if free[device_id] >= share - _EPSILON and (not request.gpu_models or model in request.gpu_models)
        ]
        wanted = max(1, round(request.gpus))
        if len(fitting) < wanted:
            raise Conflict(f"{request.gpus:g} GPUs asked for, {len(fitting)} devices have that much free")
        # Preferred devices first, then the fullest that fits, so that whole devices stay whole.
        fitting.sort(key=lambda device_id: (device_id not in request.device_ids, free[device_id]))
        return tuple(fitting[:wanted])

    def _path(self, lease_id: str) -> Path:
        return self._folder / f"{hashlib.sha256(lease_id.encode()).hexdigest()[:32]}.json"


def _amounts(path: Path) -> _Amounts:
    """What an unreadable file of a lease says of its amounts; nothing, when not even that can be read."""
    value = read_json(path)
    try:
        return decode(
            _Amounts, value.get("request") if isinstance(value, dict) else None, ignore_unknown=True
        )
    except WireError:
        return _Amounts()
