"""The open sockets of one kernel's manager: those of websockets, of buffered messages, and of the server itself.

If a restart changes the kernel's ports, all of them go over to the new ports. ZeroMQ alone would connect them to
the old ports again and again.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import zmq

from roost.provisioners.jupyter_internals import make_url


@dataclass(slots=True)
class _Target:
    channel: str
    url: str


class KernelSockets:
    """The open sockets of a kernel's manager `km`."""

    def __init__(self, km: Any) -> None:
        self._km: Any = weakref.proxy(km)
        self._targets: weakref.WeakKeyDictionary[zmq.Socket[bytes], _Target] = weakref.WeakKeyDictionary()

    def add(self, socket: zmq.Socket[bytes], channel: str) -> None:
        """Note that the manager has just connected this socket with a channel of the kernel."""
        self._targets[socket] = _Target(channel, make_url(self._km, channel))

    def follow(self) -> bool:
        """Connect each open socket with the kernel's present address. Return True if the address has changed.

        A message that a socket has not sent to the old address is dropped.
        """
        km, has_changed = self._km, False
        for socket, target in list(self._targets.items()):
            url = make_url(km, target.channel)
            if socket.closed or url == target.url:
                continue
            has_changed = True
            socket.disconnect(target.url)
            if km.curve_publickey is not None:  # the kernel may have had none before
                socket.curve_secretkey, socket.curve_publickey = km.curve_secretkey, km.curve_publickey
                socket.curve_serverkey = km.curve_publickey
            socket.connect(url)
            target.url = url
        return has_changed
