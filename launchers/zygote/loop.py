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
import site
import socket
import sys
import threading
import time
from collections.abc import Container, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from .ending import end_standby
from .immortal import make_immortal, why_not
from .kernel import KernelChild, WarmState, begin_process, prepare_standby
from .launch_packet import PACKET_BYTES, receive
from .memory import clear_type_cache, fill_heap, fill_pools, gather_module_names
from .rehearsal import rehearse
from .shown_process import show
from .standby import has_read, is_current, record_environment
from .startup import VARIABLES as STARTUP_VARIABLES
from .startup import Startup

_QUIET_S, _BURST_QUIET_S, _BURST_GAP_S = 0.12, 0.2, 0.02
"""How long the zygote waits after a launch before it forks a spare, so that the first cell is not slowed.

The second value is the wait after a burst: two launches less than the third value apart.
"""
_REMEMBERED, _RECENT_S = 32, 60.0
"""At most this many launches count as recent, and for this long.

The zygote keeps one spare for each recent launch, and at least one spare.
"""
_BASE_PRELOAD = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell", "ipykernel.debugger")
_IMPORTED_BY_LAUNCHER = (
    "collections", "contextlib", "copyreg", "enum", "errno", "fnmatch", "functools", "genericpath", "glob",
    "importlib", "ipaddress", "ipykernel_launcher", "keyword", "ntpath", "operator", "pathlib", "pkgutil",
    "posixpath", "re", "reprlib", "runpy", "string", "types", "urllib", "warnings",
)  # fmt: skip
"""The modules that `python -m ipykernel_launcher` imports while the working folder is the first entry of sys.path."""
_PLOT_BACKEND = "module://matplotlib_inline.backend_inline"  # as `IPKernelApp.init_gui_pylab` sets MPLBACKEND
_COMPLETED = (
    "collections",
    "datetime",
    "functools",
    "itertools",
    "json",
    "math",
    "pathlib",
    "random",
    "re",
    "sys",
    "time",
)
"""Modules of the standard library whose source jedi reads in the zygote, because notebooks often import them."""


class Spare:
    """A child that was forked in advance and waits for a launch.

    `standby` is from `Standby.describe`. It is empty if the child builds no standby, and None until the child
    reports.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.standby: dict[str, Any] | None = None

    def receive(self) -> None:
        """Receive the description of the child's standby. Close the socket if the child has ended."""
        packet = self.socket.recv(PACKET_BYTES)
        if packet:
            self.standby = json.loads(packet)
        else:
            self.socket.close()

    def hand_over(self, packet: bytes, fds: list[int]) -> bool:
        """Send a launch to this spare. Return False if the spare has ended."""
        with self.socket, contextlib.suppress(OSError):
            socket.send_fds(self.socket, [packet], fds)
            return True
        return False


class ZygoteLoop:
    """The loop of a zygote: it serves the agent.

    A method that forks returns the `KernelChild` in the child, and None in the zygote.
    """

    def __init__(self, agent: socket.socket, startup: Startup) -> None:
        self._agent = agent
        self._startup = startup
        self._warm: WarmState | None = None
        self._spares: list[Spare] = []
        self._most = 0
        self._launches: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)

    def serve(self) -> KernelChild | None:
        """Serve the agent until it closes the socket, then return None. In a forked child, return its `KernelChild`."""
        while True:
            building = [spare for spare in self._spares if spare.standby is None]
            wanted, timeout_s = 0, None
            if self._warm is not None:
                wanted, timeout_s = plan_spares(
                    self._launches, len(self._spares), self._most, time.monotonic()
                )
                if building and len(self._spares) < wanted:
                    timeout_s = None  # one at a time
            readable = select.select([self._agent, *(spare.socket for spare in building)], [], [], timeout_s)[
                0
            ]
            for spare in building:
                if spare.socket in readable:
                    spare.receive()
                    self._check(spare)
            if self._agent in readable:
                packet, fds = receive(self._agent)
                if not packet:
                    return None
                if (child := self._obey(packet, fds)) is not None:
                    return child
            elif not readable and (child := self._adjust(wanted)) is not None:
                return child

    def _check(self, spare: Spare) -> None:
        """Drop the spare and build no more standbys, if the spare has ended.

        Also drop the spare if its standby is not current (`is_current`).
        """
        assert self._warm is not None
        if spare.socket.fileno() < 0:
            self._spares.remove(spare)
            self._warm.builds_standbys = False
        elif spare.standby:
            self._warm.config_files = spare.standby["absent"]
            if not is_current(spare.standby):
                spare.socket.close()
                self._spares.remove(spare)

    def _obey(self, packet: bytes, fds: list[int]) -> KernelChild | None:
        if not fds:
            self._most = json.loads(packet)["most_spares"]
            self._drop(self._most)
            return None
        if len(fds) == 1:
            with lower_priority():
                self._warm, answer = prepare(json.loads(packet), self._startup)
            with open(fds[0], "wb") as file:
                file.write(answer)
            self._agent.send(b"prepared")
            return None
        self._launches.append(time.monotonic())
        if not self._hand_over(packet, fds) and fork_orphan():
            self._close_sockets()
            return KernelChild(json.loads(packet), fds, self._warm)
        for fd in reversed(fds):  # the channel last: once it is closed, the ports are free
            os.close(fd)
        return None

    def _hand_over(self, packet: bytes, fds: list[int]) -> bool:
        """Send a launch to a spare that can serve it. Return False if there is none."""
        request = json.loads(packet)
        for spare in list(self._spares):
            if spare.standby is None:
                continue
            if spare.standby and not is_current(spare.standby):
                spare.socket.close()
                self._spares.remove(spare)
            elif not spare.standby or self._may_serve(spare.standby, request):
                self._spares.remove(spare)
                if spare.hand_over(packet, fds):
                    return True
        return False

    def _may_serve(self, standby: dict[str, Any], request: dict[str, Any]) -> bool:
        assert self._warm is not None
        return request["argv"][2:] == self._warm.args and has_read(standby, request["env"])

    def _adjust(self, wanted: int) -> KernelChild | None:
        """End the surplus spares, or fork one more."""
        assert self._warm is not None
        self._drop(wanted)
        if len(self._spares) == wanted:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (ours, theirs):
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PACKET_BYTES)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PACKET_BYTES)
        if fork_orphan():
            ours.close()
            self._close_sockets()
            return wait_as_spare(theirs, self._warm)
        theirs.close()
        self._spares.append(Spare(ours))
        return None

    def _close_sockets(self) -> None:
        """Close the zygote's sockets in a child: a spare ends when nobody holds the other end of its socket."""
        for each in (self._agent, *(spare.socket for spare in self._spares)):
            each.close()

    def _drop(self, most: int) -> None:
        for spare in self._spares[most:]:
            spare.socket.close()
        del self._spares[most:]


def serve(agent: socket.socket, startup: Startup) -> KernelChild | None:
    """Run `ZygoteLoop.serve` for this agent and return its result."""
    show(sys.orig_argv[:-1])  # without ROOM
    return ZygoteLoop(agent, startup).serve()


@contextlib.contextmanager
def lower_priority() -> Iterator[None]:
    """Lower this process's priority while the block runs, if a test in a child shows that it can be raised again."""
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


def plan_spares(launches: Sequence[float], have: int, most: int, now: float) -> tuple[int, float | None]:
    """Return how many spares to keep, and in how many seconds to adjust their number (None: no need)."""
    recent_s = [now - launch for launch in launches if now - launch < _RECENT_S]
    wanted = min(most, max(1, len(recent_s)))
    if have != wanted:
        is_burst = len(recent_s) > 1 and recent_s[-2] - recent_s[-1] < _BURST_GAP_S
        quiet_s = _BURST_QUIET_S if is_burst else _QUIET_S
        return wanted, max(0.0, quiet_s - min(recent_s, default=quiet_s))
    return wanted, _RECENT_S - max(recent_s) if recent_s else None


def wait_as_spare(zygote: socket.socket, warm: WarmState) -> KernelChild:
    """Wait for a launch in this spare and return its `KernelChild`.

    End the process if the zygote ends first.
    """
    output = os.dup(2)  # the kernel redirects it
    try:
        begin_process(warm)
        warm.touch_pages()
        may_build = warm.builds_standbys and not any(map(os.path.exists, warm.config_files))
        standby = prepare_standby(warm) if may_build else None
        zygote.send(json.dumps(standby.describe() if standby else {}).encode())
        packet, fds = receive(zygote)
    except ConnectionError:  # the zygote has ended, maybe without having read the description
        packet = b""
    except BaseException:  # noqa: BLE001 - it is written to the zygote's output
        end_standby(output)
    if not packet:
        end_standby()
    zygote.close()
    os.close(output)
    return KernelChild(json.loads(packet), fds, warm, is_spare=True, standby=standby)


def fork_orphan() -> bool:
    """Fork a grandchild and return True in it. Its parent exits at once, so the agent (a subreaper) adopts it."""
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            return True
        os._exit(0)
    os.waitpid(middle, 0)
    return False


def prepare(request: dict[str, Any], startup: Startup) -> tuple[WarmState | None, bytes]:
    """Import a kernel's modules.

    Return the state that kernels inherit (None: refused) and the answer for the agent.

    A first rehearsal finds the modules. A second one finds the pages of memory that kernels write to.
    """
    started_ns = time.time_ns()
    if startup.code and not request["is_whole"]:
        return None, json.dumps({"op": "startup", "code": startup.code}).encode()
    if startup.why_not_fork:
        return None, encode_refusal(startup.why_not_fork)
    if not os.path.samefile(os.getcwd(), request["folder"]):
        return None, encode_refusal(f"{' and '.join(startup.code)} has changed the working folder")
    if request["cpus"] and os.sched_getaffinity(0) != set(request["cpus"]):
        return None, encode_refusal(f"{' and '.join(startup.code)} has changed the CPUs of this process")
    os.environ.clear()
    os.environ.update(request["env"])
    before = dict(os.environ)
    reads: dict[str, str | None] = {name: before.get(name) for name in STARTUP_VARIABLES}
    for name, value in startup.changes.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    notes: list[str] = []
    problems: list[str] = []
    try:
        with record_environment(reads):
            for name in _BASE_PRELOAD:
                importlib.import_module(name)
            early = set(sys.modules)
            for name in request["preload"]:
                if not is_installed(name):
                    problems.append(f"{name} is not preloaded, because it is not installed")
                    continue
                try:
                    importlib.import_module(name)
                except Exception as error:  # noqa: BLE001 - whatever an import may raise
                    return None, encode_refusal(f"preload {name} raises {type(error).__name__}: {error}")
            set_plot_backend()
        rehearsed, patterns, _ = rehearse(request["scratch"], None)
        with record_environment(reads):
            for name in rehearsed:
                with contextlib.suppress(Exception):  # then the kernel imports it
                    importlib.import_module(name)
        for pattern, flags in patterns:
            re.compile(pattern, flags)  # into the cache that every child inherits
        if "jedi" in request["preload"] and "jedi" in sys.modules:
            warm_jedi()
    except Exception as error:  # noqa: BLE001 - whatever an import may raise
        return None, encode_refusal(f"{type(error).__name__}: {error}")
    if threading.active_count() > 1:
        names = ", ".join(sorted(thread.name for thread in threading.enumerate()[1:]))
        return None, encode_refusal(f"a preloaded module started a thread ({names})")
    if mortal_because := why_not() if request["immortal_preloads"] else "switched off":
        notes.append(f"preloads are not immortal: {mortal_because}")
    answer = {
        "op": "ready",
        "environment": {name: before.get(name) for name in sorted(reads)},
        "rehearsed": len(rehearsed),
        "notes": notes,
        "problems": problems,
        **take_fingerprint(),
        "late_names": find_late_names(early),
    }
    changed = [path for path, at_ns, *_ in answer["files"] if at_ns > started_ns and path.endswith(".py")]
    if changed:  # the process may have imported the old content
        return None, encode_refusal(f"{changed[0]} changed while it was loaded", op="failed")
    packet = json.dumps(answer).encode()
    warm = WarmState(request["args"])
    warm.keeps_tempdir = startup.has_tempdir
    for name in before.keys() | os.environ.keys():
        if before.get(name) != os.environ.get(name):
            warm.environment_changes[name] = os.environ.get(name)
    del answer, before, reads, rehearsed, patterns, changed, notes, problems
    gc.collect()
    fill_heap()
    gather_module_names()
    warm.module_names = frozenset(sys.modules)
    if not mortal_because:
        make_immortal()
    clear_type_cache()
    fill_pools()
    gc.freeze()
    warm.pages = rehearse(request["scratch"], warm).pages
    os.chdir("/")  # the folder may be on a disk that is removed later
    return warm, packet


def find_late_names(early: Container[str]) -> list[str]:
    """Return the modules and files that a fresh kernel would read from its working folder, if the folder had them.

    `early` are the modules that it imports while the working folder is not on sys.path. IPython puts that folder behind
    the standard library.
    """
    late = {name for name in sys.modules if "." not in name and name not in early}
    files = ("matplotlibrc",) if "matplotlib" in sys.modules else ()
    return sorted((late - sys.stdlib_module_names).union(_IMPORTED_BY_LAUNCHER, files))


def set_plot_backend() -> None:
    """Give a preloaded matplotlib the backend that ipykernel names before a cell can import matplotlib."""
    matplotlib: Any = sys.modules.get("matplotlib")
    if matplotlib is not None and not os.environ.get("MPLBACKEND"):
        matplotlib.rcParams["backend"] = _PLOT_BACKEND


def warm_jedi() -> None:
    """Complete some code, so that jedi has read its files. Otherwise each kernel's first completion takes 0.5 s.

    For each module that a cell imports, jedi reads its source: 20 to 150 ms, and up to 4 MiB.
    """
    jedi: Any = importlib.import_module("jedi")
    texts = ["os.pa", "''.jo", "pri", "impo", "import os; os.getc", "from os import pa"]
    texts += [f"import {name}; {name}.a" for name in _COMPLETED]
    for text in texts:
        with contextlib.suppress(Exception):  # jedi fails on some code; then a kernel reads the files
            jedi.Interpreter(text, [{"os": os}]).complete()


def is_installed(name: str) -> bool:
    """True if there is a module of this name. This imports the packages around it."""
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            return False
        raise


def encode_refusal(reason: str, op: str = "refused") -> bytes:
    return json.dumps({"op": op, "reason": reason}).encode()


def take_fingerprint() -> dict[str, Any]:
    """Return the paths that a fresh interpreter would read for the same imports, each with its `stamp`.

    Folders stand for the files of the standard library, which is only ever replaced as a whole.
    """
    library = os.path.dirname(os.__file__) + os.sep
    sites = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    paths = {sys.executable, os.path.join(sys.prefix, "pyvenv.cfg"), *sites}
    for folder in sites:
        with contextlib.suppress(OSError):
            paths.update(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".pth"))
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
        "absent": find_absent_folders(),
        "names": sorted({name.partition(".")[0] for name in sys.modules}),
    }


def find_absent_folders() -> list[str]:
    """Return the folders of packages, and entries of sys.path, that do not exist.

    An interpreter does not search them, even if they are made later: `pip install --user` makes one.
    """
    folders = [*site.getsitepackages(), *sys.path]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return sorted({folder for folder in folders if os.path.isabs(folder) and not os.path.exists(folder)})


def stamp(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
