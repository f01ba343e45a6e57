"""`roost top --all`: the promises of all users, read from the machine's book."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from roost.launchers.agent.leases.holders import list_holders
from roost.launchers.machine_book.book import MachineBook
from roost.launchers.machine_book.places import find_place, list_places
from roost.launchers.machine_book.rules import BadRules, MachineRules, RulesReader
from roost.launchers.protocol.messages import Holder
from roost.placement.model import EPSILON
from roost.placement.model.format import format_amount, format_bytes, format_count
from roost.scheduler.backends.holders import format_since

from .tables import build_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """The holders of all users. `problem` is a clause that says why some may be missing."""

    holders: tuple[Holder, ...] = ()
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        holders = [
            {
                "user": each.user or None,
                "is_own": each.is_own,
                "cpus": each.cpus,
                "memory_bytes": each.memory_bytes,
                "devices": dict(each.devices),
                "since": each.since or None,
            }
            for each in self.holders
        ]
        return {"holders": holders, "problem": self.problem}


def read_all_holders() -> Holdings:
    """Read the machine's book, without its lock."""
    place = find_place()
    if place.folder is None:
        return Holdings(problem=f"nobody divides this machine between its users: {place.why}")
    rules, problem = MachineRules(), ""
    try:
        rules = RulesReader().current()
    except BadRules as refusal:
        problem = str(refusal)
    held, _ = MachineBook("", cpus=0, memory_bytes=0, list_folders=list_places).read_all(rules)
    return Holdings(holders=list_holders(held, shows_names=rules.shows_names), problem=problem)


def describe_others(found: Holdings) -> str:
    """Return the sums of the promises to other users, as a list for people; empty without promises."""
    others = [each for each in found.holders if not each.is_own]
    cpus = sum(each.cpus for each in others)
    memory_bytes = sum(each.memory_bytes for each in others)
    gpus = sum(sum(each.devices.values()) for each in others)
    parts = [format_count(cpus, "CPU")] if cpus else []
    parts += [f"{format_bytes(memory_bytes)} of memory"] if memory_bytes else []
    parts += [format_count(gpus, "GPU")] if gpus else []
    return ", ".join(parts)


def build_holders(found: Holdings) -> Table:
    """Return a table of all holders, the oldest first."""
    table = build_table("USER", "CPUS", "MEMORY", "GPUS", "SINCE", right=("CPUS", "MEMORY"))
    now = time.time()
    for each in found.holders:
        table.add_row(
            each.user or "another user",
            format_amount(each.cpus) if each.cpus else "-",
            format_bytes(each.memory_bytes) if each.memory_bytes else "-",
            _format_devices(each.devices) or "-",
            format_since(each.since, now) or "unknown",
        )
    return table


def _format_devices(devices: Mapping[str, float]) -> str:
    """Return the sum of the shares, the ids, and each share that is less than a GPU: `1.5 (0, 1: 50%)`."""
    ids = [
        device_id if share > 1 - EPSILON else f"{device_id}: {share:.0%}"
        for device_id, share in sorted(devices.items())
    ]
    return f"{format_amount(sum(devices.values()))} ({', '.join(ids)})" if ids else ""
