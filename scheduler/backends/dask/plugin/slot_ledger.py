"""What roost's kernels hold of a Dask cluster, kept in Dask's own scheduler: who gets what is decided here, at once.

Arithmetic alone, on builtin values. It is sent to Dask's scheduler pickled by value: the standard library is all that
it needs there.

A machine's workers are told apart by their nanny's address, which stays when a worker is started again (`slot`). A
claim is on the slots of one machine: on their abstract resources, as in `dask worker --resources "GPU=2"`, which
the workers themselves then hold back from tasks (`dask_plugin`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

GPU = "GPU"
_CRUMB = 1e-6
"""Sums of shares are right up to this."""


class Refused(Exception):
    """There is no room for a lease; the text says why."""


@dataclass(kw_only=True)
class Slot:
    """Where a worker is, or was and may come again: `worker` is its address, empty while there is none.

    `resources` are what it was declared with, and `free` what neither tasks nor leases have of them. `devices`: the
    ids of its GPUs. `is_ready` once the worker has said all this, and holds back what is leased.
    """

    name: str
    machine: str
    worker: str = ""
    nanny: str = ""
    threads: int = 0
    memory_bytes: int = 0
    resources: dict[str, float] = field(default_factory=dict)
    free: dict[str, float] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    is_ready: bool = False
    is_leaving: bool = False


@dataclass(kw_only=True)
class Held:
    """A lease. `claims`: by slot, the amounts of its abstract resources. A `wish` waits for tasks to end."""

    lease_id: str
    kernel_id: str
    user: str
    machine: str
    cpus: float
    memory_bytes: int
    gpus: float
    resources: dict[str, float]
    device_ids: list[str] = field(default_factory=list)
    claims: dict[str, dict[str, float]] = field(default_factory=dict)
    is_wish: bool = True

    @property
    def share(self) -> float:
        """What it takes of each of its devices."""
        return min(self.gpus, 1.0)


class Ledger:
    """`slots` by name, `leases` by id."""

    def __init__(self) -> None:
        self.slots: dict[str, Slot] = {}
        self.leases: dict[str, Held] = {}
        self._numbers: dict[str, list[str]] = {}  # by slot, the ids that it was given

    def state(self) -> dict[str, Any]:
        """All of it as builtin values, for `of`."""
        return {
            "slots": [asdict(slot) for slot in self.slots.values()],
            "leases": [asdict(held) for held in self.leases.values()],
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> Ledger:
        """The ledger of another version of this code; what that knew and this one does not is left out."""
        ledger = cls()
        slots = [Slot(**_known(Slot, slot)) for slot in state["slots"]]
        leases = [Held(**_known(Held, held)) for held in state["leases"]]
        ledger.slots = {slot.name: slot for slot in slots}
        ledger.leases = {held.lease_id: held for held in leases}
        return ledger

    def parts(self, machines: Iterable[str]) -> dict[str, Ledger]:
        """The ledger of each of these machines alone: who asks about many asks these, in O(all) and not O(all²)."""
        parts = {machine: Ledger() for machine in machines}
        for slot in self.slots.values():
            if slot.machine in parts:
                parts[slot.machine].slots[slot.name] = slot
        for held in self.leases.values():
            if held.machine in parts:
                parts[held.machine].leases[held.lease_id] = held
        return parts

    def of_machine(self, machine: str) -> list[Slot]:
        """Its workers that are ready."""
        return [slot for slot in self.slots.values() if slot.machine == machine and slot.is_ready]

    def leases_on(self, machine: str) -> list[Held]:
        return [held for held in self.leases.values() if held.machine == machine]

    def claims_of(self, slot: str) -> dict[str, dict[str, float]]:
        """By lease, what it claims of that slot."""
        return {held.lease_id: held.claims[slot] for held in self.leases.values() if held.claims.get(slot)}

    def leased(self, slot: str) -> dict[str, float]:
        """What all leases together claim of that slot."""
        return _sum(self.claims_of(slot).values())

    def shares(self, machine: str) -> dict[str, float]:
        """By device, what of it is leased."""
        return _sum(dict.fromkeys(held.device_ids, held.share) for held in self.leases_on(machine))

    def devices(self, machine: str) -> dict[str, Slot]:
        """By id, the slot that has it: the first that says so."""
        found: dict[str, Slot] = {}
        for slot in self.of_machine(machine):
            for device in slot.devices:
                found.setdefault(device, slot)
        return found

    def numbered(self, slot: Slot) -> list[str]:
        """Ids for the GPUs of a worker that does not say which it sees: the next numbers on its machine."""
        others = [other for other in self.of_machine(slot.machine) if other.name != slot.name]
        taken = {device for other in others for device in other.devices}
        count = math.ceil(slot.resources.get(GPU, 0.0))
        known = [number for number in self._numbers.get(slot.name, []) if number not in taken]
        numbers = (str(number) for number in range(len(taken) + len(known) + count))
        new = (number for number in numbers if number not in taken and number not in known)
        self._numbers[slot.name] = list(itertools.islice(itertools.chain(known, new), count))
        return self._numbers[slot.name]

    def described(self, machine: str) -> dict[str, Any] | None:
        """What there is of a machine and what is leased, for `DaskNode.of`; None where no worker of it is ready."""
        slots = self.of_machine(machine)
        if not slots:
            return None
        staying = [slot for slot in slots if not slot.is_leaving]
        leases = [lease for lease in self.leases_on(machine) if not lease.is_wish]
        totals: dict[str, float] = {}
        free: dict[str, float] = {}
        for slot in staying or slots:
            for what, amount in slot.resources.items():
                totals[what] = totals.get(what, 0.0) + amount
                left = amount - sum(lease.claims.get(slot.name, {}).get(what, 0.0) for lease in leases)
                free[what] = free.get(what, 0.0) + max(0.0, min(slot.free.get(what, 0.0), left))
        by_device = self.devices(machine)
        return {
            "threads": sum(slot.threads for slot in staying or slots),
            "memory_bytes": sum(slot.memory_bytes for slot in staying or slots),
            "resources": totals,
            "free": free,
            "devices": [device for device, slot in by_device.items() if slot in (staying or slots)],
            "shares": self.shares(machine),
            "cpus_promised": sum(lease.cpus for lease in leases),
            "memory_promised_bytes": sum(lease.memory_bytes for lease in leases),
            "leases": [lease.lease_id for lease in leases],
            "is_draining": not staying,
        }

    def take(self, held: Held, *, preferred: list[str]) -> Held:
        """Note a lease with its claims, or raise `Refused`; one of that id on another machine is forgotten."""
        known = self._noted(held)
        if known is not None:
            return known
        slots = [slot for slot in self.of_machine(held.machine) if not slot.is_leaving]
        if not slots:
            raise Refused(f"no worker of the Dask cluster is on {held.machine} now")
        others = self.leases_on(held.machine)
        cpus = sum(slot.threads for slot in slots) - sum(other.cpus for other in others)
        if held.cpus > cpus + _CRUMB:
            raise Refused(f"{held.machine} has {max(0.0, cpus):g} threads that no kernel has")
        memory = sum(slot.memory_bytes for slot in slots) - sum(other.memory_bytes for other in others)
        if held.memory_bytes > memory:
            raise Refused(f"{held.machine} has {max(0, memory)} bytes of memory that no kernel has")
        claims: dict[str, dict[str, float]] = {}
        there = self.devices(held.machine)
        devices = self._choose(held, slots, preferred)
        for device in devices:
            claim = claims.setdefault(there[device].name, {})
            claim[GPU] = claim.get(GPU, 0.0) + held.share
        for name, amount in held.resources.items():
            if self._split(name, amount, slots, claims):
                raise Refused(f"its workers have no {amount:g} more of {name} that no other kernel has")
        held.device_ids, held.claims = devices, claims
        self.leases[held.lease_id] = held
        return held

    def take_again(self, held: Held, *, device_ids: list[str]) -> Held:
        """Note what a kernel that lives has, on its devices; raises `Refused` if another kernel has one of them.

        What it has of workers that are not there yet is claimed for when they come (`move`).
        """
        known = self._noted(held)
        if known is not None:
            return known
        shares, there = self.shares(held.machine), self.devices(held.machine)
        claims: dict[str, dict[str, float]] = {}
        for device in device_ids:
            if shares.get(device, 0.0) + held.share > 1 + _CRUMB:
                raise Refused(f"another kernel has GPU {device} of {held.machine}")
            slot = there[device].name if device in there else f"{held.machine} {device}"
            claim = claims.setdefault(slot, {})
            claim[GPU] = claim.get(GPU, 0.0) + held.share
        for name, amount in held.resources.items():
            if left := self._split(name, amount, self.of_machine(held.machine), claims):
                claims[f"{held.machine} {name}"] = {name: left}
        held.device_ids, held.claims = device_ids, claims
        self.leases[held.lease_id] = held
        return held

    def move(self, to: Slot) -> list[str]:
        """Claims on slots that are not there, as of a nanny that was started anew, are on this one where it fits.

        Returns the ids of the leases.
        """
        moved = []
        for held in self.leases_on(to.machine):
            for name in [name for name in held.claims if name not in self.slots]:
                claim = held.claims[name]
                of_it = held.share * len(set(to.devices) & set(held.device_ids))
                of_it -= held.claims.get(to.name, {}).get(GPU, 0.0)
                leased = self.leased(to.name)
                fits = all(
                    to.resources.get(what, 0.0) - leased.get(what, 0.0) >= amount - _CRUMB
                    for what, amount in claim.items()
                )
                if fits and claim.get(GPU, 0.0) <= of_it + _CRUMB:
                    held.claims[to.name] = _sum([held.claims.pop(name), held.claims.get(to.name, {})])
                    moved.append(held.lease_id)
        return moved

    def _noted(self, held: Held) -> Held | None:
        known = self.leases.get(held.lease_id)
        if known is not None and known.machine == held.machine:
            return known
        self.leases.pop(held.lease_id, None)
        return None

    def _choose(self, held: Held, slots: list[Slot], preferred: list[str]) -> list[str]:
        if not held.gpus:
            return []
        count = max(1, round(held.gpus))
        shares = self.shares(held.machine)
        left = {
            slot.name: slot.resources.get(GPU, 0.0) - self.leased(slot.name).get(GPU, 0.0) for slot in slots
        }
        by_device = {device: slot for device, slot in self.devices(held.machine).items() if slot in slots}
        fullest = sorted(by_device, key=lambda device: -shares.get(device, 0.0))
        chosen: list[str] = []
        for device in [*preferred, *fullest]:
            slot = by_device.get(device)
            if slot is None or device in chosen or shares.get(device, 0.0) + held.share > 1 + _CRUMB:
                continue
            if left[slot.name] + _CRUMB >= held.share:
                chosen.append(device)
                left[slot.name] -= held.share
            if len(chosen) == count:
                return chosen
        raise Refused(f"{held.machine} has no {held.gpus:g} GPU that no other kernel has")

    def _split(
        self, name: str, amount: float, slots: list[Slot], claims: dict[str, dict[str, float]]
    ) -> float:
        """Claim it of the slots that have something claimed already, else of the first; returns what is missing."""
        for slot in sorted(slots, key=lambda slot: slot.name not in claims):
            left = slot.resources.get(name, 0.0) - self.leased(slot.name).get(name, 0.0)
            part = min(amount, left)
            if part > _CRUMB:
                claims.setdefault(slot.name, {})[name] = part
                amount -= part
            if amount <= _CRUMB:
                return 0.0
        return amount


def _sum(parts: Any) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for name, amount in part.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _known(kind: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in kind.__dataclass_fields__}
