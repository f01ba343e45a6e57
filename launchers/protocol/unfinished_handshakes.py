"""Connections to a TCP port that have not finished their handshake, and when a server closes them.

ZeroMQ closes a connection without a handshake after some seconds (`HANDSHAKE_IVL`). Until then, each connection holds
a descriptor, although its peer may have no key. This module closes connections earlier, but only while the process
runs short of descriptors. An unfinished connection is at one of four stages:

    new         the peer has sent nothing
    greeted     the peer has sent something, but it has not received a WELCOME
    welcomed    the peer knows the server's public key, but it has not named a key of its own
    named       the peer has named its own key, but the server has not accepted that key yet

A client with a key passes each stage within milliseconds, so a crowd at one stage is no crowd of clients. The largest
stage loses its older half, again and again, with pauses. Finished connections stay open. The address of a peer does
not count, because a client may share it with a stranger.

Linux counts the bytes of each connection, and these counts show the stage. Where the system does not count them, only
a message shows that a handshake is finished.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import socket
import sys
import threading
import time
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from roost.launchers.daemon.open_files import read_limit

log = logging.getLogger(__name__)

_PAUSE_S = 0.01
"""How long the thread pauses after each look at new connections."""
_WAKE_MS = 50
"""How long the thread waits for new connections before it checks the unfinished ones."""
_CHECK_SHARE = 0.1
"""At most this share of the time goes into checks while descriptors are not short."""

_WELCOME_BYTES = 64 + 100
"""A peer that has received this many bytes has the greeting (64 bytes) and a part of CURVE's WELCOME (170 bytes)."""
_READY_BYTES = 64 + 170 + 16
"""A peer that has received this many bytes has a part of the READY. The refusal of a key has only 12 bytes."""
_INITIATE_BYTES = 64 + 202 + 259
"""A peer that has sent this many bytes has sent a greeting, a HELLO and an INITIATE, which names its key."""
_MOST_BYTES = 64 + 202 + 4_096
"""A client sends at most this many bytes before it receives a READY."""
_ACKED, _RECEIVED = slice(120, 128), slice(128, 136)  # in `struct tcp_info` of Linux 4.1 and newer
_M_MMAP_THRESHOLD = -3  # in `malloc.h`
_LARGE_BYTES = 128 << 10
_NEW, _GREETED, _WELCOMED, _NAMED, _EXCESSIVE = range(5)


class UnfinishedHandshakes:
    """The connections of one server's `socket`, from their acceptance to the end of their handshake.

    `socket` is bound to a TCP port. A thread follows its connections, so that no step of the event loop is too long.
    """

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        endpoint = bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).decode()
        self._port = int(endpoint.rstrip("\0").rpartition(":")[2])
        self._descriptors: dict[int, None] = {}  # the oldest first
        address = f"inproc://handshakes-{id(self)}"
        socket.monitor(address, zmq.EVENT_ACCEPTED | zmq.EVENT_MONITOR_STOPPED)
        # A socket of zmq.asyncio would wake the event loop for each event.
        self._monitor: zmq.Socket[bytes] = zmq.Context.shadow(socket.context.underlying).socket(zmq.PAIR)
        self._monitor.connect(address)
        return_large_blocks()
        self._thread = threading.Thread(target=self._watch, name="handshakes", daemon=True)
        self._thread.start()

    def finish(self, descriptor: int) -> None:
        """Note that a message has arrived through this connection."""
        self._descriptors.pop(descriptor, None)

    def close(self) -> None:
        """End the thread. The server's socket is still open, and may be closed afterwards."""
        self._socket.monitor(None, 0)
        self._thread.join()

    def _watch(self) -> None:
        check_at = 0.0
        while True:
            try:
                self._monitor.poll(_WAKE_MS if self._descriptors else None)
                is_short = self._take_accepted() >= read_limit() // 2
                began = time.monotonic()
                if is_short or began >= check_at:
                    self._check(is_short)
                    ended = time.monotonic()
                    check_at = ended + (ended - began) / _CHECK_SHARE
            except (_Stopped, zmq.ZMQError):
                break
            except Exception:  # a monitor that nobody reads stops ZeroMQ's thread
                log.exception("connections to port %d cannot be checked", self._port)
            time.sleep(_PAUSE_S)
        self._monitor.close(linger=0)

    def _take_accepted(self) -> int:
        """Note the new connections, and return how many descriptors are in use at least."""
        in_use = 0
        with contextlib.suppress(zmq.Again):
            while True:
                event = parse_monitor_message(self._monitor.recv_multipart(zmq.NOBLOCK))
                if event["event"] == zmq.EVENT_MONITOR_STOPPED:
                    raise _Stopped
                descriptor = event["value"]
                self._descriptors.pop(descriptor, None)  # of an earlier connection
                self._descriptors[descriptor] = None
                in_use = max(in_use, descriptor)  # a new connection gets the lowest free descriptor
        return in_use

    def _check(self, is_short: bool) -> None:
        """Forget finished connections, and close excessive ones.

        If descriptors are short, also close the older half of the largest stage.
        """
        stages: dict[int, list[int]] = {stage: [] for stage in (_NEW, _GREETED, _WELCOMED, _NAMED)}
        for descriptor in list(self._descriptors):
            stage = _find_stage(descriptor, self._port)
            if stage is None:
                self._descriptors.pop(descriptor, None)
            elif stage == _EXCESSIVE:
                self._end(descriptor)
            else:
                stages[stage].append(descriptor)
        if is_short:
            crowd = max(stages.values(), key=len)
            for descriptor in crowd[: len(crowd) // 2]:
                self._end(descriptor)

    def _end(self, descriptor: int) -> None:
        if self._descriptors.pop(descriptor, "finished") is None:
            _shut_down(descriptor, self._port)


def return_large_blocks() -> None:
    """Have glibc give the memory of long messages back to the system as soon as it is free.

    A stranger may announce one in each connection, and glibc would keep blocks of up to 32 MiB.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


class _Stopped(Exception):
    """The server has ended the monitor."""


def _find_stage(descriptor: int, port: int) -> int | None:
    """Return the stage of a connection to this port. Return None if it is finished or closed."""
    connection = _open(descriptor, port)
    if connection is None:
        return None
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RECEIVED.stop)
    except OSError:  # it was closed meanwhile
        return None
    finally:
        connection.detach()
    if len(info) < _RECEIVED.stop:
        return None
    acked, received = (int.from_bytes(info[place], sys.byteorder) for place in (_ACKED, _RECEIVED))
    if acked >= _READY_BYTES:
        return None
    if received > _MOST_BYTES:
        return _EXCESSIVE
    if acked >= _WELCOME_BYTES:
        return _NAMED if received >= _INITIATE_BYTES else _WELCOMED
    return _GREETED if received else _NEW


def _shut_down(descriptor: int, port: int) -> None:
    """Shut down a connection to this port. ZeroMQ then closes it."""
    connection = _open(descriptor, port)
    if connection is not None:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # its peer has closed it
            pass
        finally:
            connection.detach()


def _open(descriptor: int, port: int) -> socket.socket | None:
    """Return a socket with ZeroMQ's own descriptor, which the caller detaches. A copy could be one too many.

    Return None if that is no connection to this port. ZeroMQ may have closed it, and its number may be in use again.
    """
    try:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=descriptor)
    except OSError:
        return None
    try:
        name: Any = connection.getsockname()
    except OSError:
        name = None
    if isinstance(name, tuple) and name[1] == port:
        return connection
    connection.detach()
    return None
