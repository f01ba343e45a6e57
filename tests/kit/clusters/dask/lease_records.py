"""Checks that Dask, roost's ledger in Dask, the workers and the agents know the same leases.

Dask's processes import this module, so they need the folder of `kit` in their PYTHONPATH.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from roost.testing.deadlines import until

if TYPE_CHECKING:
    from distributed import Client

AGREE_S = 60.0
"""How long Dask, the ledger, the workers and the agents may take to agree."""


def ledger(dask_scheduler: Any) -> dict[str, Any]:
    """Return the leases in roost's ledger, and the resources of each worker in Dask's scheduler."""
    plugin = dask_scheduler.plugins["roost"]
    leases = plugin.ledger.leases.values()
    return {
        "leases": {lease.lease_id: [lease.machine, lease.device_ids, lease.claims] for lease in leases},
        "wishes": [lease.lease_id for lease in leases if lease.is_wish],
        "slots": {slot.worker: slot.name for slot in plugin.ledger.slots.values()},
        "known": {worker.address: dict(worker.resources) for worker in dask_scheduler.workers.values()},
    }


def books(dask_worker: Any) -> dict[str, Any]:
    """Return a worker's resources: total, free for tasks, used by tasks, and held back for leases."""
    state = dask_worker.state
    claims, granted = dask_worker.__dict__["_roost_claims"]
    used: Counter[str] = Counter()
    for task in state.executing | state.long_running:
        used.update(task.resource_restrictions)
    return {
        "total": dict(state.total_resources),
        "free": dict(state.available_resources),
        "used": dict(used),
        "claims": {lease_id: dict(claim) for lease_id, claim in claims.items()},
        "granted": list(granted),
    }


async def sweep(dask_scheduler: Any) -> None:
    """Run roost's sweep in Dask's scheduler for 2 s. Every 0.3 s it looks for leases that no agent has noted."""
    plugin = dask_scheduler.plugins["roost"]
    often = type(plugin).start.__globals__["sweep"](plugin, 0.3)
    await asyncio.wait([asyncio.ensure_future(often)], timeout=2)


def hold(number: int) -> tuple[str, float, float]:
    """Sleep as a task of Dask. Return its machine, and its begin and end on the monotonic clock."""
    from distributed import get_worker

    began = time.monotonic()
    time.sleep(0.1)
    return get_worker().address.rpartition(":")[0].rpartition("/")[2], began, time.monotonic()


class Slow:
    """A task's result that takes 8 s to move to another worker, and arrives there as a text."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _slowly, ()


def _slowly() -> str:
    time.sleep(8)
    return "7"


def most_at_once(ran: list[tuple[str, float, float]]) -> int:
    """Return the largest number of these tasks that ran at one moment."""
    return max(sum(began <= moment < ended for _, began, ended in ran) for _, moment, _ in ran)


async def whole(client: Client, node_folder: Path, kernel_leases: list[str]) -> dict[str, Any]:
    """Wait until Dask, the ledger, the workers and the agents know exactly these leases. Return `ledger()`.

    After `AGREE_S` an error lists the differences. `node_folder` holds the folders of the machines' agents.
    """
    said: dict[str, Any] = {}
    wrong: list[str] = []

    async def do_agree() -> bool:
        nonlocal said, wrong
        try:
            said = await client.run_on_scheduler(ledger)
            wrong = _wrong(said, await client.run(books), sorted(kernel_leases), noted(node_folder))
        except (KeyError, OSError) as problem:  # a worker has just come or gone
            wrong = [repr(problem)]
        return not wrong

    await until(do_agree, lambda: f"all know exactly these leases: {wrong}", AGREE_S, 0.1)
    return dict(said)


def noted(node_folder: Path) -> list[str]:
    """Return the ids of the leases in the agents' ledgers."""
    found = []
    for file in node_folder.glob("agent-dask-*/leases/*.json"):
        with contextlib.suppress(FileNotFoundError):  # it has just been released
            found.append(json.loads(file.read_text())["lease"]["id"])
    return sorted(found)


def _wrong(
    said: dict[str, Any], workers: dict[str, dict[str, Any]], kernel_leases: list[str], agents: list[str]
) -> list[str]:
    wrong = []
    if sorted(said["leases"]) != kernel_leases or said["wishes"]:
        wrong.append(f"the ledger has {said['leases']} (wishes {said['wishes']}), kernels {kernel_leases}")
    if agents != kernel_leases:
        wrong.append(f"agents have {agents}, kernels {kernel_leases}")
    for worker, its in workers.items():
        slot = said["slots"].get(worker)
        claims = {name: of[slot] for name, (_, _, of) in said["leases"].items() if of.get(slot)}
        if its["claims"] != claims or sorted(its["granted"]) != sorted(claims):
            wrong.append(
                f"{worker} holds {its['claims']} (granted {its['granted']}) back, the ledger has {claims}"
            )
        for name, total in its["total"].items():
            leased = sum(claim.get(name, 0.0) for claim in claims.values())
            free, known = its["free"][name], said["known"][worker][name]
            if abs(total - leased - its["used"].get(name, 0.0) - free) > 1e-6 or free < -1e-6:
                wrong.append(
                    f"{worker} has {free:g} of {total:g} {name} free, leased {leased:g}, {its['used']}"
                )
            if abs(total - leased - known) > 1e-6:
                wrong.append(
                    f"Dask believes {worker} to have {known:g} of {total:g} {name}, leased {leased:g}"
                )
    return wrong
