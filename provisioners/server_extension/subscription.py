"""Tells whether a client's connection receives its kernel's IOPub messages, and holds requests until it does.

While there is no process, because the kernel has died or is being restarted, requests are held: the ports of the
next process may be others. Once the restart has to wait, its `PendingStart` holds them and shows why.

After a restart, ZeroMQ connects each socket again by itself. If the shell socket is first, a cell runs before
IOPub is subscribed, and its output is lost. A request that comes after a restart is therefore held until the
connection has received the new process's answer to a probe.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

from roost.provisioners.provisioner import RoostProvisioner

from .client_message import ClientMessage
from .held_messages import HeldMessages
from .quick_manager import QuickManager

_FIRST_PAUSE_S = 0.01
_LONGEST_PAUSE_S = 0.1
"""The longest pause between two probes. The pauses double up to this time."""
_DEAF_S = 5.0
"""How long a running process may take to answer a probe. After this time the held requests are sent without
an answer, because some kernels publish nothing for a probe.
"""


class Subscription:
    """The subscription of one `connection` with the kernel of a `provisioner`."""

    def __init__(self, connection: Any, km: Any, provisioner: RoostProvisioner) -> None:
        self._connection = connection
        self._km = km
        self._provisioner = provisioner
        self._heard_launch = provisioner.launch_id
        self._probes: set[str] = set()
        self._answered = asyncio.Event()
        self._held = HeldMessages()
        self._listening: asyncio.Task[None] | None = None

    @property
    def is_listening(self) -> bool:
        """True while requests are held. The caller must then call `note` for each IOPub message."""
        return self._listening is not None

    def hold(self, request: ClientMessage) -> bool:
        """Hold a request until the connection will receive its output.

        Return False if the caller must send it.
        """
        if self._listening is None:
            if self._heard_launch == self._provisioner.launch_id and not self._lacks_process:
                return False
            self._listening = asyncio.create_task(self._listen())
        if not self._held.add(request):
            self._connection.refuse_full(request)
        return True

    @property
    def _lacks_process(self) -> bool:
        """True if the kernel has ended or is being restarted. False for a manager that does not report it."""
        return isinstance(self._km, QuickManager) and (self._km.is_restarting or self._provisioner.has_ended)

    def note(self, request_id: str | None) -> None:
        """Note that an IOPub message has arrived, whose parent is the request `request_id`."""
        if request_id in self._probes:
            self._answered.set()

    def close(self) -> None:
        """Stop listening, and send the held requests to the kernel at once."""
        if self._listening is not None:
            self._listening.cancel()
            self._release()

    async def _listen(self) -> None:
        try:
            while self._lacks_process or self._heard_launch != self._provisioner.launch_id:
                if self._lacks_process:
                    if self._connection.find_restart() is not None:
                        return
                    await self._km.started.wait()
                    continue
                self._heard_launch = self._provisioner.launch_id
                await self._probe(self._heard_launch)
        finally:
            self._release()

    async def _probe(self, launch_id: str) -> None:
        """Send probes until this launch answers, `_DEAF_S` has passed, or another launch has begun."""
        pause_s, late_at = _FIRST_PAUSE_S, None
        self._probes.clear()
        self._answered.clear()
        while not (
            self._answered.is_set() or self._lacks_process or launch_id != self._provisioner.launch_id
        ):
            if not self._provisioner.is_launching:
                if late_at is None:
                    late_at = time.monotonic() + _DEAF_S
                elif time.monotonic() > late_at:
                    return
                self._probes.add(self._connection.probe())
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._answered.wait(), pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _release(self) -> None:
        self._listening = None
        if not self._lacks_process:  # else nothing has been heard of the launch that comes
            self._heard_launch = self._provisioner.launch_id
        self._connection.end_probe()
        for request in self._held.take():
            self._connection.take(request)
