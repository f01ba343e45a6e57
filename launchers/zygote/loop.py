"""The zygote's loop: prepare once, then fork a kernel for each request. `main` describes the messages."""

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

from .kernel import KernelChild, WarmState, set_title
from .memory import fill_heap, gather_module_names
from .rehearsal import rehearse

_PACKET_BYTES = 1 << 20
_QUIET_S = 0.2
"""How long no launch must have come before a spare is forked, so that spares never slow a launch."""
_SPARES = 5
"""At most this many spares wait for a launch. Each has its pages ready (about 15 MiB)."""
_RECENT_S = 60.0
"""How long a launch counts. The zygote keeps one spare per recent launch: enough for a burst, one when idle."""
_BASE_PRELOAD = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell", "ipykernel.debugger")


def serve(agent: socket.socket) -> KernelChild | None:
    """Serve the agent until it closes the socket, then return None. In a forked child, return its `KernelChild`."""
    set_title([os.fsencode(part) for part in sys.orig_argv[:-1]])  # without ROOM
    warm: WarmState | None = None
    spares: list[socket.socket] = []
    launches: collections.deque[float] = collections.deque(maxlen=_SPARES)
    while True:
        wanted, timeout_s = plan_spares(launches, len(spares), time.monotonic()) if warm else (0, None)
        if not select.select([agent], [], [], timeout_s)[0]:
            assert warm is not None
            for surplus in spares[wanted:]:
                surplus.close()
            del spares[wanted:]
            if len(spares) == wanted:
                continue
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            for each in (ours, theirs):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PACKET_BYTES)
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _PACKET_BYTES)
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
            del packet, answer, file, fds  # or each child would free them, and so write to their pages
            continue
        launches.append(time.monotonic())
        if not hand_over(spares, packet, fds) and fork_orphan():
            agent.close()
            return KernelChild(json.loads(packet), fds[0], fds[1], warm)
        for fd in fds:
            os.close(fd)


@contextlib.contextmanager
def lower_priority() -> Iterator[None]:
    """Lower this process's priority for a while, if a throwaway child can raise it again: kernels inherit it."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, usual + 10)
            os.setpriority(os.PRIO_PROCESS, 0, usual)
            os._exit(0)
        os._exit(1)
    can_undo = os.waitpid(child, 0)[1] == 0
    if can_undo:
        os.setpriority(os.PRIO_PROCESS, 0, usual + 10)
    try:
        yield
    finally:
        if can_undo:
            os.setpriority(os.PRIO_PROCESS, 0, usual)


def hand_over(spares: list[socket.socket], packet: bytes, fds: list[int]) -> bool:
    """Give a launch to the first live spare. Return False if there is none."""
    while spares:
        with spares.pop(0) as spare, contextlib.suppress(OSError):
            socket.send_fds(spare, [packet], fds)
            return True
    return False


def plan_spares(launches: Sequence[float], have: int, now: float) -> tuple[int, float | None]:
    """Return how many spares to keep, and in how many seconds to adjust their number (None: no need)."""
    recent_s = [now - launch for launch in launches if now - launch < _RECENT_S]
    wanted = max(1, len(recent_s))
    if have != wanted:
        return wanted, max(0.0, _QUIET_S - min(recent_s, default=_QUIET_S))
    return wanted, _RECENT_S - max(recent_s) if recent_s else None


def wait_as_spare(zygote: socket.socket, warm: WarmState) -> KernelChild | None:
    """Wait, in a child forked in advance, for a launch. Return None when the zygote has ended."""
    os.setsid()
    warm.touch_pages()
    packet, fds, _, _ = socket.recv_fds(zygote, _PACKET_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
    zygote.close()
    return KernelChild(json.loads(packet), fds[0], fds[1], warm, is_spare=True) if packet else None


def fork_orphan() -> bool:
    """Fork a grandchild and return True in it. Its parent exits at once, so the agent (a subreaper) adopts it."""
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            return True
        os._exit(0)
    os.waitpid(middle, 0)
    return False


def prepare(request: dict[str, Any]) -> tuple[WarmState | None, bytes]:
    """Import a kernel's modules. Return the state that kernels inherit (None: refused) and the answer for the agent.

    A first rehearsal finds the modules. A second one finds the pages of memory that kernels write to.
    """
    started_ns = time.time_ns()
    reads: set[str] = set()
    before = dict(os.environ)
    try:
        with record_environment(reads):
            for name in (*_BASE_PRELOAD, *request["preload"]):
                importlib.import_module(name)
        rehearsed, patterns, _ = rehearse(None)
        with record_environment(reads):
            for name in rehearsed:
                with contextlib.suppress(Exception):  # then the kernel imports it
                    importlib.import_module(name)
        for pattern, flags in patterns:
            re.compile(pattern, flags)  # into the cache that every child inherits
    except Exception as error:  # noqa: BLE001 - whatever an import may raise
        return None, encode_refusal(f"{type(error).__name__}: {error}")
    if threading.active_count() > 1:
        names = ", ".join(sorted(thread.name for thread in threading.enumerate()[1:]))
        return None, encode_refusal(f"a preloaded module started a thread ({names})")
    answer = {
        "op": "ready",
        "environment": {name: before.get(name) for name in sorted(reads)},
        "rehearsed": len(rehearsed),
        **take_fingerprint(),
    }
    changed = [path for path, at_ns, *_ in answer["files"] if at_ns > started_ns and path.endswith(".py")]
    if changed:  # the process may have imported the old content
        return None, encode_refusal(f"{changed[0]} changed while it was loaded", op="failed")
    packet = json.dumps(answer).encode()
    warm = WarmState(request["args"])
    for name in before.keys() | os.environ.keys():
        if before.get(name) != os.environ.get(name):
            warm.environment_changes[name] = os.environ.get(name)
    del answer, before, reads, rehearsed, patterns, changed
    gc.collect()
    fill_heap()
    gather_module_names()
    warm.module_names = frozenset(sys.modules)
    gc.freeze()
    warm.pages = rehearse(warm).pages
    return warm, packet


def encode_refusal(reason: str, op: str = "refused") -> bytes:
    return json.dumps({"op": op, "reason": reason}).encode()


@contextlib.contextmanager
def record_environment(reads: set[str]) -> Iterator[None]:
    """Add to `reads` the name of each variable that is looked up in os.environ."""
    plain = type(os.environ)

    class Recording(plain):  # type: ignore[valid-type, misc]
        def __getitem__(self, name: str) -> str:
            if isinstance(name, str):
                reads.add(name)
            return str(super().__getitem__(name))

    os.environ.__class__ = Recording
    try:
        yield
    finally:
        os.environ.__class__ = plain


def take_fingerprint() -> dict[str, Any]:
    """Return the paths that a fresh interpreter would read for the same imports, with their stamps.

    Folders stand for the files of the standard library, which is only ever replaced as a whole.
    """
    library = os.path.dirname(os.__file__) + os.sep
    sites = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    paths = {sys.executable, os.path.join(sys.prefix, "pyvenv.cfg"), *sites}
    for site in sites:
        with contextlib.suppress(OSError):
            paths.update(os.path.join(site, name) for name in os.listdir(site) if name.endswith(".pth"))
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path:
            is_library = path.startswith(library) and not path.startswith(tuple(sites))
            paths.add(os.path.dirname(path) if is_library else path)
    # Shared libraries that are mapped as code.
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        paths.update(line.split(maxsplit=5)[5].strip() for line in maps if " r-xp " in line and "/" in line)
    return {
        "files": [[path, *stamp(path)] for path in sorted(paths) if stamp(path)],
        "folders": [[path, *stamp(path)] for path in sys.path if path not in paths and stamp(path)],
        "names": sorted({name.partition(".")[0] for name in sys.modules}),
    }


def stamp(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
