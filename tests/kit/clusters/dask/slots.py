"""Workers and leases of Dask's ledger, as values, for the tests of the ledger."""

from __future__ import annotations

from typing import Any

from roost.scheduler.backends.dask.plugin.slot_ledger import GPU, Slot, SlotLease, SlotLedger


def slot(name: str, machine: str = "m", *, gpus: float = 0, devices: str = "", **resources: float) -> Slot:
    """Return a worker with 4 threads and 1000 bytes. Each letter of `devices` is the id of a GPU."""
    amounts = {GPU: gpus, **resources} if gpus else resources
    return Slot(
        name=name,
        machine=machine,
        worker=f"w-{name}",
        threads=4,
        memory_bytes=1000,
        resources=amounts,
        free=dict(amounts),
        devices=list(devices),
        is_ready=True,
    )


def held(lease_id: str = "a", machine: str = "m", **changes: Any) -> SlotLease:
    """Return a lease of nothing, with these changes."""
    asked: dict[str, Any] = {"cpus": 0, "memory_bytes": 0, "gpus": 0, "resources": {}, **changes}
    return SlotLease(lease_id=lease_id, kernel_id=f"k-{lease_id}", user="ada", machine=machine, **asked)


def ledger(*slots: Slot) -> SlotLedger:
    """Return a ledger with these workers and no leases."""
    made = SlotLedger()
    made.slots = {each.name: each for each in slots}
    return made
