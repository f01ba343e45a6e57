"""The ledger of roost's leases on a Dask cluster. It lives in Dask's own scheduler, and grants or refuses at once.

A slot is the place of one worker, named by the address of its nanny, which outlives the worker. A lease claims
abstract resources (`dask worker --resources "GPU=2"`) of one machine's slots, which the workers hold back from tasks.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

Amounts = dict[str, float]

GPU = "GPU"
CRUMB = 1e-6
"""How far sums of shares may be off, by rounding."""
DIGITS = 6


class Refused(Exception):
    """There is no room for a lease. The text has the reason."""


@dataclass(kw_only=True)
class Slot:
    """The place of a worker."""

    name: str
    machine: str
    worker: str = ""
    nanny: str = ""
    threads: int = 0
    memory_bytes: int = 0
    resources: dict[str, float] = field(default_factory=dict)
    free: dict[str, float] = field(default_factory=dict)
    """The amounts that neither tasks nor leases hold."""
    devices: list[str] = field(default_factory=list)
    is_ready: bool = False
    """True once the worker has reported its `resources` and `devices`, and holds back the leased amounts."""
    is_leaving: bool = False


@dataclass(kw_only=True)
class SlotLease:
    """A lease in this ledger. `claims` are the amounts of abstract resources by slot.

    `is_wish` is True while the lease waits for running tasks.
    """

    lease_id: str
    kernel_id: str
    user: str
    machine: str
    cpus: float
    memory_bytes: int
    gpus: float
    resources: dict[str, float]
    device_ids: list[str] = field(default_factory=list)
    claims: dict[str, Amounts] = field(default_factory=dict)
    is_wish: bool = True

    @property
    def share(self) -> float:
        """The part that the lease takes of each of its devices."""
        return min(self.gpus, 1.0)


class SlotLedger:
    """A ledger, with its `slots` by name and its `leases` by id.

    No method awaits. Each call is therefore one step for all of roost's schedulers.
    """

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self.leases: dict[str, SlotLease] = {}
        self._numbers: dict[str, list[str]] = {}  # by slot, the device ids that `number_devices` chose

    def split_by_machine(self, machines: Iterable[str]) -> dict[str, SlotLedger]:
        """Return a ledger for each of these machines. Questions about many machines then take O(n), not O(n²)."""
        parts = {machine: SlotLedger() for machine in machines}
        for slot in self.slots.values():
            if slot.machine in parts:
                parts[slot.machine].slots[slot.name] = slot
        for held in self.leases.values():
            if held.machine in parts:
                parts[held.machine].leases[held.lease_id] = held
        return parts

    def ready_slots(self, machine: str) -> list[Slot]:
        """Return a machine's slots whose workers are ready."""
        return [slot for slot in self.slots.values() if slot.machine == machine and slot.is_ready]

    def leases_on(self, machine: str) -> list[SlotLease]:
        return [held for held in self.leases.values() if held.machine == machine]

    def claims_of(self, slot: str) -> dict[str, Amounts]:
        """Return the claims on this slot, by lease id."""
        return {held.lease_id: held.claims[slot] for held in self.leases.values() if held.claims.get(slot)}

    def leased(self, slot: str) -> dict[str, float]:
        return _sum(self.claims_of(slot).values())

    def shares(self, machine: str) -> dict[str, float]:
        """Return the leased share of each device, by device id."""
        return _sum(dict.fromkeys(held.device_ids, held.share) for held in self.leases_on(machine))

    def devices(self, machine: str) -> dict[str, Slot]:
        """Return the slot of each device: the first slot that reports it."""
        found: dict[str, Slot] = {}
        for slot in self.ready_slots(machine):
            for device in slot.devices:
                found.setdefault(device, slot)
        return found

    def number_devices(self, slot: Slot) -> list[str]:
        """Return ids for the GPUs of a worker that does not report any: the next free numbers on its machine."""
        others = [other for other in self.ready_slots(slot.machine) if other.name != slot.name]
        taken = {device for other in others for device in other.devices}
        count = math.ceil(slot.resources.get(GPU, 0.0))
        known = [number for number in self._numbers.get(slot.name, []) if number not in taken]
        numbers = (str(number) for number in range(len(taken) + len(known) + count))
        new = (number for number in numbers if number not in taken and number not in known)
        self._numbers[slot.name] = list(itertools.islice(itertools.chain(known, new), count))
        return self._numbers[slot.name]

    def describe(self, machine: str) -> dict[str, Any] | None:
        """Return a machine's amounts and leases, for `DaskNode.of`; None if none of its workers is ready."""
        slots = self.ready_slots(machine)
        if not slots:
            return None
        # A machine whose workers all leave is still shown, because its kernels live. It drains.
        staying = [slot for slot in slots if not slot.is_leaving]
        # A wish is not promised yet: tasks may go on to hold its amounts.
        leases = [lease for lease in self.leases_on(machine) if not lease.is_wish]
        used = staying or slots
        free: Amounts = {}
        for slot in used:
            for what, amount in slot.resources.items():
                # A worker may not have reported yet that it holds back a new lease, and then its `free` is too high.
                left = amount - sum(lease.claims.get(slot.name, {}).get(what, 0.0) for lease in leases)
                free[what] = free.get(what, 0.0) + max(0.0, min(slot.free.get(what, 0.0), left))
        return {
            "threads": sum(slot.threads for slot in used),
            "memory_bytes": sum(slot.memory_bytes for slot in used),
            "resources": _sum(slot.resources for slot in used),
            "free": free,
            "devices": [device for device, slot in self.devices(machine).items() if slot in used],
            "shares": self.shares(machine),
            "cpus_promised": sum(lease.cpus for lease in leases),
            "memory_promised_bytes": sum(lease.memory_bytes for lease in leases),
            "leases": [lease.lease_id for lease in leases],
            "is_draining": not staying,
        }

    def take(self, held: SlotLease, *, preferred: list[str]) -> SlotLease:
        """Add a lease with its claims and return it, or raise `Refused`.

        A known lease of that id on this machine is returned as it is. A known lease of that id on another machine
        is forgotten.
        """
        known = self._find_known(held)
        if known is not None:
            return known
        slots = [slot for slot in self.ready_slots(held.machine) if not slot.is_leaving]
        if not slots:
            raise Refused(f"no worker of the Dask cluster is on {held.machine} now")
        # Wishes count here, so that two starts do not wait for the same slice.
        others = self.leases_on(held.machine)
        cpus = sum(slot.threads for slot in slots) - sum(other.cpus for other in others)
        if held.cpus > cpus + CRUMB:
            raise Refused(f"{held.machine} has {max(0.0, cpus):g} threads that no kernel has")
        memory = sum(slot.memory_bytes for slot in slots) - sum(other.memory_bytes for other in others)
        if held.memory_bytes > memory:
            raise Refused(f"{held.machine} has {max(0, memory)} bytes of memory that no kernel has")
        there, devices = self.devices(held.machine), self._choose(held, slots, preferred)
        claims = _claim_devices(held, (there[device].name for device in devices))
        for name, amount in held.resources.items():
            if self._split(name, amount, slots, claims):
                raise Refused(f"its workers have no {amount:g} more of {name} that no other kernel has")
        return self._add(held, devices, claims)

    def take_again(self, held: SlotLease, *, device_ids: list[str]) -> SlotLease:
        """Add the lease of a live kernel, on its devices; raise `Refused` if another kernel has one of them."""
        known = self._find_known(held)
        if known is not None:
            return known
        # Only the devices are checked: the kernel lives, and already uses its CPUs and memory.
        shares, there = self.shares(held.machine), self.devices(held.machine)
        for device in device_ids:
            if shares.get(device, 0.0) + held.share > 1 + CRUMB:
                raise Refused(f"another kernel has GPU {device} of {held.machine}")
        # Amounts on workers that are not back yet are claimed on a placeholder slot (see `move`).
        places = (there[name].name if name in there else f"{held.machine} {name}" for name in device_ids)
        claims = _claim_devices(held, places)
        for name, amount in held.resources.items():
            if left := self._split(name, amount, self.ready_slots(held.machine), claims):
                claims[f"{held.machine} {name}"] = {name: left}
        return self._add(held, device_ids, claims)

    def move(self, to: Slot) -> list[str]:
        """Move claims on missing slots of the machine to this slot, if they fit; return the ids of the leases.

        Slots are missing before a worker is back, and after a nanny was started again at another address.
        """
        moved = []
        for held in self.leases_on(to.machine):
            # Claims are moved one by one: each makes the room on this slot smaller for the next one.
            for name in [name for name in held.claims if name not in self.slots]:
                claim = held.claims[name]
                on_it = held.share * len(set(to.devices) & set(held.device_ids))
                on_it -= held.claims.get(to.name, {}).get(GPU, 0.0)
                leased = self.leased(to.name)
                fits = all(
                    to.resources.get(what, 0.0) - leased.get(what, 0.0) >= amount - CRUMB
                    for what, amount in claim.items()
                )
                if fits and claim.get(GPU, 0.0) <= on_it + CRUMB:
                    held.claims[to.name] = _sum([held.claims.pop(name), held.claims.get(to.name, {})])
                    moved.append(held.lease_id)
        return moved

    def _find_known(self, held: SlotLease) -> SlotLease | None:
        known = self.leases.get(held.lease_id)
        if known is not None and known.machine == held.machine:
            return known
        # The scheduler has placed the request again, on another machine: its earlier wish is void.
        self.leases.pop(held.lease_id, None)
        return None

    def _add(self, held: SlotLease, device_ids: list[str], claims: dict[str, Amounts]) -> SlotLease:
        held.device_ids, held.claims = device_ids, claims
        self.leases[held.lease_id] = held
        return held

    def _choose(self, held: SlotLease, slots: list[Slot], preferred: list[str]) -> list[str]:
        if not held.gpus:
            return []
        count = max(1, round(held.gpus))
        shares = self.shares(held.machine)
        left = {
            slot.name: slot.resources.get(GPU, 0.0) - self.leased(slot.name).get(GPU, 0.0) for slot in slots
        }
        by_device = {device: slot for device, slot in self.devices(held.machine).items() if slot in slots}
        # Shares are put together on few devices, so that whole ones stay free.
        fullest = sorted(by_device, key=lambda device: -shares.get(device, 0.0))
        chosen: list[str] = []
        for device in [*preferred, *fullest]:
            slot = by_device.get(device)
            if slot is None or device in chosen or shares.get(device, 0.0) + held.share > 1 + CRUMB:
                continue
            if left[slot.name] + CRUMB >= held.share:
                chosen.append(device)
                left[slot.name] -= held.share
            if len(chosen) == count:
                return chosen
        raise Refused(f"{held.machine} has no {held.gpus:g} GPU that no other kernel has")

    def _split(self, name: str, amount: float, slots: list[Slot], claims: dict[str, Amounts]) -> float:
        """Add an amount of a resource to `claims`, first on slots that they have already. Return the missing amount."""
        for slot in sorted(slots, key=lambda slot: slot.name not in claims):
            left = slot.resources.get(name, 0.0) - self.leased(slot.name).get(name, 0.0)
            part = min(amount, left)
            if part > CRUMB:
                claims.setdefault(slot.name, {})[name] = part
                amount -= part
            if amount <= CRUMB:
                return 0.0
        return amount


def _claim_devices(held: SlotLease, slots: Iterable[str]) -> dict[str, Amounts]:
    """Return the GPU claims of a lease. `slots` has the slot of each of its devices."""
    return {slot: {GPU: held.share * count} for slot, count in Counter(slots).items()}


def _sum(parts: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0.0) + amount
    return total
