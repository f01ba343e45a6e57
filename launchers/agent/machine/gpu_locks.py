"""Locks on GPUs that the cluster manager counts but does not assign. With them, a node's agents divide its GPUs.

An agent holds a GPU by a claim (`claims`). Containers of several users share a node, so claims of all users count.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import socket
import time
from collections.abc import Sequence

from roost.launchers.protocol.rpc import RemoteError
from roost.placement.model import Device

from . import claims

log = logging.getLogger(__name__)

_WAIT_S = 5.0
_RETRY_S = 0.1


class GpuLocks:
    """The GPUs that this process holds until it ends. `node` names the node: test nodes may share a machine."""

    def __init__(self, node: str, *, wait_s: float = _WAIT_S) -> None:
        self._node = node
        self._wait_s = wait_s
        self._held: dict[str, socket.socket] = {}
        self._is_choosing = asyncio.Lock()

    @property
    def is_held(self) -> bool:
        """True if this process holds a GPU."""
        return bool(self._held)

    async def hold(self, devices: Sequence[Device], count: int) -> tuple[str, ...]:
        """Hold `count` of the devices, with the least used memory first, and return their ids. May be repeated.

        If fewer are free, wait a while: a kernel that ends has its GPUs a little longer than its container. Polls, as
        no event shows that a name is free. Raises `RemoteError`.
        """
        ranked = sorted(devices, key=lambda device: device.memory_used_bytes or 0)
        until = time.monotonic() + self._wait_s
        async with self._is_choosing:
            while not self._take(ranked, count):
                if time.monotonic() >= until:
                    problem = (
                        f"fewer than {count} of the node's {len(devices)} GPUs are free of other kernels"
                    )
                    problem += f", although the cluster has granted {count}{self._describe_others(devices)}"
                    raise RemoteError("no_devices", problem)
                await asyncio.sleep(_RETRY_S)
        log.info("holds GPU %s", ", ".join(self._held))
        return tuple(device.id for device in devices if device.id in self._held)

    def close(self) -> None:
        """Give all GPUs back. May be repeated."""
        for held in self._held.values():
            held.close()
        self._held.clear()

    def _take(self, ranked: Sequence[Device], count: int) -> bool:
        """Hold `count` devices, or none."""
        for device in ranked:
            if len(self._held) < count and device.id not in self._held:
                self._bind(device.id)
        if len(self._held) < count:
            self.close()
        return len(self._held) == count

    def _bind(self, device_id: str) -> None:
        """Hold a device unless another process does."""
        try:
            self._held[device_id] = claims.claim(self._name(device_id))
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                raise

    def _name(self, device_id: str) -> str:
        digest = hashlib.sha256(f"{self._node}\n{device_id}".encode()).hexdigest()
        return f"roost-gpu-{digest}"

    def _describe_others(self, devices: Sequence[Device]) -> str:
        """Return the end of a sentence that names the processes that hold some of these devices."""
        owners = {device.id: claims.find_owner(self._name(device.id)) for device in devices}
        known = [f"{owner} holds GPU {each}" for each, owner in owners.items() if owner is not None]
        return f": {', '.join(known)}" if known else ""
