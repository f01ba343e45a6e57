"""The zygote's loop: prepare once, then fork kernels as the agent asks; see `zygote` for what is said."""

from __future__ import annotations

import collections
import contextlib
import gc
import importlib
import json
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .imports import fingerprint, recorded_environment
from .kernel import Kernel, Warm, set_title
from .memory import gather_module_names, plug_holes
from .rehearsal import rehearse

_PACKET_BYTES = 1 << 20
_QUIET_S = 0.2
"""Spare children are forked when no launch has come for so long, so that they compete with none."""
_SPARES = 5
"""At most so many children wait for a launch, with their pages ready (about 15 MiB each)."""
_RECENT_S = 60.0
"""As many spares are kept as there were launches in this time, so that a burst finds them and idleness frees them."""
_BASE_PRELOAD = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell", "ipykernel.debugger")


def serve(agent: socket.socket) -> Kernel | None:
    """Answer the agent until it hangs up (None), or return in a forked child that is to become a kernel."""
    set_title([os.fsencode(part) for part in sys.orig_argv[:-1]])  # without the room for longer ones
    warm: Warm | None = None
    spares: list[socket.socket] = []
    launches: collections.deque[float] = collections.deque(maxlen=_SPARES)
    while True:
        wanted, timeout_s = spares_wanted(launches, len(spares), time.monotonic()) if warm else (0, None)
        if not select.select([agent], [], [], timeout_s)[0]:
            assert warm is not None
            for surplus in spares[wanted:]:
                surplus.close()
            del spares[wanted:]
            if len(spares) == wanted:
                continue
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            size_buffers(ours, theirs)
            if fork_orphan():
                for mine in (agent, ours, *spares):
                    mine.close()
                return wait_as_spare(theirs, warm)
            theirs.close()
            spares.append(ours)
            continue
        packet, fds, _, _ = socket.recv_fds(agent, _PACKET_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return None
        if len(fds) == 1:
            with lower_priority():
                warm, answer = prepare(json.loads(packet))
            with open(fds[0], "wb") as file:
                file.write(answer)
            agent.send(b"prepared")
            del packet, answer, file, fds  # or every child would write to the pages that it frees them on
            continue
        launches.append(time.monotonic())
        if not hand_over(spares, packet, fds) and fork_orphan():
            agent.close()
            return Kernel(json.loads(packet), *fds, warm=warm)
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def lower_priority() -> Iterator[None]:
    """Be nice for a while, where that can be undone: kernels inherit it."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    child = os.fork()
    if child == 0:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, usual + 10)
            os.setpriority(os.PRIO_PROCESS, 0, usual)
        except OSError:
            os._exit(1)
        os._exit(0)
    can_undo = os.waitpid(child, 0)[1] == 0
    if can_undo:
        os.setpriority(os.PRIO_PROCESS, 0, usual + 10)
    try:
        yield
    finally:
        if can_undo:
            os.setpriority(os.PRIO_PROCESS, 0, usual)


def hand_over(spares: list[socket.socket], packet: bytes, fds: list[int]) -> bool:
    """Give a launch to the first spare that lives; False if there is none."""
    while spares:
        with spares.pop(0) as spare:
            try:
                socket.send_fds(spare, [packet], fds)
            except OSError:
                continue
            return True
    return False


def spares_wanted(launches: Sequence[float], have: int, now: float) -> tuple[int, float | None]:
    """How many spares there should be by the times of the latest launches, and in how many seconds to see to it."""
    recent_s = [now - launch for launch in launches if now - launch < _RECENT_S]
    wanted = max(1, len(recent_s))
    if have != wanted:
        return wanted, max(0.0, _QUIET_S - min(recent_s, default=_QUIET_S))
    return wanted, _RECENT_S - max(recent_s) if recent_s else None


def wait_as_spare(zygote: socket.socket, warm: Warm) -> Kernel | None:
    """A child forked ahead of its launch; None when the zygote went."""
    os.setsid()
    warm.touch_pages()
    packet, fds, _, _ = socket.recv_fds(zygote, _PACKET_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
    zygote.close()
    return Kernel(json.loads(packet), *fds, warm=warm, is_spare=True) if packet else None


def size_buffers(*sockets: socket.socket) -> None:
    for each in sockets:
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PACKET_BYTES)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PACKET_BYTES)


def fork_orphan() -> bool:
    """Fork a grandchild; True in it.  Its parent is gone at once, so that the nearest subreaper adopts it."""
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            return True
        os._exit(0)
    os.waitpid(middle, 0)
    return False


def prepare(request: dict[str, Any]) -> tuple[Warm | None, bytes]:
    """Import what a kernel imports and build what every kernel builds; with the answer for the agent."""
    started_ns = time.time_ns()
    reads: set[str] = set()
    before = dict(os.environ)
    try:
        with recorded_environment(reads):
            for name in (*_BASE_PRELOAD, *request["preload"]):
                importlib.import_module(name)
        rehearsed, patterns, _ = rehearse(None)
        with recorded_environment(reads):
            for name in rehearsed:
                with contextlib.suppress(Exception):  # what cannot be imported here is the kernel's to import
                    importlib.import_module(name)
        for pattern, flags in patterns:
            re.compile(pattern, flags)  # into the cache that every child inherits
    except Exception as error:  # noqa: BLE001 - whatever an import may raise
        return None, refusal(f"{type(error).__name__}: {error}")
    if threading.active_count() > 1:
        names = ", ".join(sorted(thread.name for thread in threading.enumerate()[1:]))
        return None, refusal(f"a preloaded module started a thread ({names})")
    answer = {
        "op": "ready",
        "environment": {name: before.get(name) for name in sorted(reads)},
        "rehearsed": len(rehearsed),
        **fingerprint(),
    }
    changed = [
        path for path, changed_ns, *_ in answer["files"] if changed_ns > started_ns and path.endswith(".py")
    ]
    if changed:
        return None, refusal(f"{changed[0]} changed while it was loaded", op="failed")
    packet = json.dumps(answer).encode()
    warm = Warm(request["args"])
    for name in before.keys() | os.environ.keys():
        if before.get(name) != os.environ.get(name):
            warm.environment_changes[name] = os.environ.get(name)
    del answer, before, reads, rehearsed, patterns, changed
    gc.collect()
    warm.plugs = plug_holes()
    gather_module_names()
    gc.freeze()
    warm.pages = rehearse(warm).pages
    return warm, packet


def refusal(reason: str, op: str = "refused") -> bytes:
    return json.dumps({"op": op, "reason": reason}).encode()
