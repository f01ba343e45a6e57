"""Reports the node's real use to subscribers, so that no scheduler needs to ask for it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from roost.launchers.daemon.tasks import Timers
from roost.placement.model import Device, Node

log = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often the use is compared with the last report."""
_REPEAT_AFTER = 12
"""After this many looks the report is repeated: small changes add up, and a subscriber that has left is noticed."""
_CPUS, _MEMORY, _DEVICE = 0.02, 0.01, 0.05
"""A difference is noticeable from this share of the node's CPUs, of its memory and of a device on."""


class StatusFeed:
    """Reports the node's status when somebody subscribes, after a noticeable change, and every minute.

    `read` measures the node. `report` returns False if nobody subscribes any more. Without subscribers, nothing is
    measured.
    """

    def __init__(self, read: Callable[[], Node], report: Callable[[Node], bool], timers: Timers) -> None:
        self._read, self._report, self._timers = read, report, timers
        self._reported: Node | None = None
        self._looks = 0

    def begin(self) -> None:
        """Report the status, and begin to watch it. Called for each new subscriber."""
        self._reported = None
        self._look()

    def _look(self) -> None:
        self._timers.later(LOOK_S, self._look, key=self)
        self._looks += 1
        try:
            status = self._read()
        except Exception:  # a driver that fails now may answer later
            log.exception("the use of this machine cannot be read")
            return
        if self._reported is None or self._looks >= _REPEAT_AFTER or differs(self._reported, status):
            self._reported, self._looks = status, 0
            if not self._report(status):
                self._timers.cancel(self)


def differs(before: Node, after: Node) -> bool:
    """True if a scheduler should know that the status has changed. Leases do not count: they have their own events."""
    if _list_facts(before) != _list_facts(after):
        return True
    if abs((after.cpus_used or 0.0) - (before.cpus_used or 0.0)) >= _CPUS * after.cpus > 0:
        return True
    memory_bytes = abs((after.memory_used_bytes or 0) - (before.memory_used_bytes or 0))
    if memory_bytes >= _MEMORY * after.memory_bytes > 0:
        return True
    pairs = zip(before.devices, after.devices, strict=True)
    return any(abs(_use_of(one) - _use_of(other)) >= _DEVICE for one, other in pairs)


def _list_facts(node: Node) -> tuple[object, ...]:
    devices = [(device.id, device.model, device.memory_bytes) for device in node.devices]
    return node.warm, node.is_draining, node.enforcement, node.problems, devices


def _use_of(device: Device) -> float:
    return -1.0 if device.use is None else device.use
