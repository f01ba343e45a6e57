"""The ledger of one node: the leases that it has granted, kept in files that outlive the agent.

If the agent itself decides (backend `local`), the ledger never promises more than the node has.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from roost.launchers.daemon.file_input import (
    MOST_OWN_BYTES,
    UnfitFile,
    put_aside,
    read_document,
)
from roost.launchers.daemon.private_files import remove_unfinished, write_private_json
from roost.launchers.machine_book.book import ALONE, Conflict, View
from roost.launchers.protocol.messages import Lease, Owner, Reserve
from roost.placement.model import EPSILON, Device, Request
from roost.placement.model.json_codec import WireError, decode, encode

log = logging.getLogger(__name__)


class _Promised:
    """The sums over all leases of a ledger. They are exact fractions, because sums of floats become inexact."""

    def __init__(self, device_ids: Iterable[str]) -> None:
        self.cpus = Fraction(0)
        self.memory_bytes = 0
        self.gpus = Fraction(0)
        self.resources: dict[str, Fraction] = {}
        self.by_device = dict.fromkeys(device_ids, Fraction(0))

    def count(self, lease: Lease, times: int) -> None:
        """Add a lease to the sums (1), or take it out (-1)."""
        request = lease.request
        self.cpus += times * Fraction(request.cpus)
        self.memory_bytes += times * request.memory_bytes
        self.gpus += times * Fraction(request.gpus)
        for name, amount in request.resources.items():
            self.resources[name] = self.resources.get(name, Fraction(0)) + times * Fraction(amount)
        for device_id in lease.device_ids:
            share = self.by_device.get(device_id, Fraction(0))
            self.by_device[device_id] = share + times * Fraction(request.gpu_share)


class LeaseLedger:
    """The granted leases of a node, by id, over fixed totals. A file that cannot be read is put aside."""

    def __init__(self, folder: Path, *, cpus: float, memory_bytes: int, devices: Sequence[Device]) -> None:
        self.cpus = cpus
        self.memory_bytes = memory_bytes
        self.models = {device.id: device.model for device in devices}
        self._devices = tuple(devices)
        self._folder = folder
        self._entries: dict[str, Reserve] = {}
        self._promised = _Promised(self.models)
        folder.mkdir(mode=0o700, exist_ok=True)
        remove_unfinished(folder)
        for path in sorted(folder.glob("*.json")):
            try:
                entry = decode(Reserve, read_document(path, most_bytes=MOST_OWN_BYTES), ignore_unknown=True)
            except UnfitFile as problem:
                put_aside(path, problem.reason, log)
            except WireError as problem:
                put_aside(path, f"has no lease that can be read: {problem}", log)
            else:
                self._load(path, entry)

    @property
    def is_empty(self) -> bool:
        return not self._entries

    def entries(self) -> tuple[Reserve, ...]:
        """Return the recorded request of each granted lease."""
        return tuple(self._entries.values())

    def __contains__(self, lease_id: object) -> bool:
        return lease_id in self._entries

    def get(self, lease_id: str) -> Reserve | None:
        return self._entries.get(lease_id)

    def reserve(self, request: Reserve) -> Lease:
        """Grant a lease, or raise `Conflict`. `OSError` (a full disk) leaves the ledger unchanged."""
        known = self._entries.get(request.lease.id)
        if known is not None:  # the caller has lost the first answer: the same devices again
            return known.lease
        lease = request.lease if request.is_granted else self.choose(request.lease)
        self._write(replace(request, lease=lease))
        return lease

    def choose(self, lease: Lease, view: View = ALONE) -> Lease:
        """Return the lease with its devices, which are free here and in the `view` of the machine.

        Raises `Conflict`. Devices that the lease has already are preferred.
        """
        return replace(lease, device_ids=self._choose_devices(lease.request, lease.device_ids, view))

    def is_excessive(self, lease: Lease, view: View) -> bool:
        """True if the ledger and the `view` of the machine together promise more than there is of what a lease has."""
        request = lease.request
        return bool(
            (request.cpus and self._promised.cpus + view.cpus > self.cpus + EPSILON)
            or (request.memory_bytes and self._promised.memory_bytes + view.memory_bytes > self.memory_bytes)
            or any(
                self._promised.by_device[each] + view.devices.get(each, 0) > 1 + EPSILON
                for each in lease.device_ids
            )
        )

    def release(self, lease_id: str) -> bool:
        # The kernel has ended. If this agent dies before the file is gone, the next agent lets the lease expire.
        entry = self._entries.pop(lease_id, None)
        if entry is None:
            return False
        self._promised.count(entry.lease, -1)
        self._path(lease_id).unlink(missing_ok=True)
        return True

    def transfer(self, lease_id: str, owner: Owner) -> None:
        known = self._entries.get(lease_id)
        if known is not None and known.lease.owner != owner:
            self._write(replace(known, lease=replace(known.lease, owner=owner)))

    @property
    def cpus_promised(self) -> float:
        return float(self._promised.cpus)

    @property
    def memory_promised_bytes(self) -> int:
        return self._promised.memory_bytes

    @property
    def gpus_promised(self) -> float:
        return float(self._promised.gpus)

    @property
    def resources_promised(self) -> dict[str, float]:
        return {name: float(amount) for name, amount in self._promised.resources.items() if amount}

    def promised_by_device(self) -> dict[str, float]:
        """Return the promised share of each device, 0 to 1."""
        return {device_id: float(share) for device_id, share in self._promised.by_device.items()}

    def list_unseen(self) -> dict[str, float]:
        """Return the promised shares of devices that a manager has granted by names that this machine does not know."""
        granted = {
            name for entry in self._entries.values() if entry.is_granted for name in entry.lease.device_ids
        }
        return {name: float(self._promised.by_device[name]) for name in granted - self.models.keys()}

    def count_by_user(self) -> dict[str, int]:
        """Return how many leases each user holds."""
        return Counter(entry.lease.owner.user for entry in self._entries.values())

    def _choose_devices(self, request: Request, preferred: Sequence[str], view: View) -> tuple[str, ...]:
        free_cpus = self.cpus - float(self._promised.cpus + view.cpus)
        if request.cpus and request.cpus > free_cpus + EPSILON:
            raise Conflict(f"{request.cpus:g} CPUs asked for, {max(free_cpus, 0):g} free")
        free_bytes = self.memory_bytes - self.memory_promised_bytes - view.memory_bytes
        if request.memory_bytes and request.memory_bytes > free_bytes:
            raise Conflict(f"{request.memory_bytes} bytes of memory asked for, {max(free_bytes, 0)} free")
        for name, amount in request.resources.items():
            raise Conflict(f"{amount:g} {name} asked for, this machine has none")
        view.check(request)
        if not request.gpus:
            return ()
        free = {
            device_id: 1.0 - float(promised + view.devices.get(device_id, 0))
            for device_id, promised in self._promised.by_device.items()
        }
        fitting = [
            device.id
            for device in self._devices
            if free[device.id] >= request.gpu_share - EPSILON and request.accepts(device)
        ]
        if len(fitting) < request.gpu_count:
            raise Conflict(f"{request.gpus:g} GPUs asked for, {len(fitting)} devices have that much free")
        # Preferred devices first, then the fullest that fits, so that whole devices stay whole.
        fitting.sort(key=lambda device_id: (device_id not in preferred, free[device_id]))
        return tuple(fitting[: request.gpu_count])

    def _load(self, path: Path, entry: Reserve) -> None:
        if path != self._path(entry.lease.id):
            put_aside(path, "has a lease that belongs into another file", log)
            return
        self._note(entry)

    def _write(self, entry: Reserve) -> None:
        """Record a lease in its file, without the launch: the next agent needs neither its keys nor its environment."""
        entry = replace(entry, launch=None)
        # The file comes first: a lease that anybody has seen granted is there for the next agent, too.
        write_private_json(self._path(entry.lease.id), encode(entry))
        self._note(entry)

    def _note(self, entry: Reserve) -> None:
        """Add a lease to the entries and the sums, in the place of an earlier entry for the same lease."""
        known = self._entries.get(entry.lease.id)
        if known is not None:
            self._promised.count(known.lease, -1)
        self._entries[entry.lease.id] = entry
        self._promised.count(entry.lease, 1)

    def _path(self, lease_id: str) -> Path:
        digest = hashlib.sha256(lease_id.encode(errors="surrogatepass")).hexdigest()
        return self._folder / f"{digest[:32]}.json"
