"""Locks on GPUs that the cluster manager counts but does not assign. With them, a node's agents divide its GPUs.

An agent holds a GPU by a name in Linux's abstract namespace of sockets. Only one process can bind a name, the system
gives the name back when that process ends, and nobody else can take it away. A lock file could be removed by its owner.
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
                    raise RemoteError("no_devices", f"{problem}, although the cluster has granted {count}")
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
        name = hashlib.sha256(f"{self._node}\n{device_id}".encode()).hexdigest()
        held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            held.bind(f"\0roost-gpu-{name}")
        except OSError as problem:
            held.close()
            if problem.errno != errno.EADDRINUSE:
                raise
        else:
            self._held[device_id] = held
