"""A warm process that forks ipykernels: run as a script, by path, with the kernel's own Python.

    python [interpreter flags] zygote.py FD ROOM

ROOM is any long string: its place is used to show a kernel's command line in ps.
FD is one end of a ``SOCK_SEQPACKET`` socket pair; the agent holds the other.  Packets are JSON.

    agent → zygote   {"preload": [module names], "args": [those most kernels will get]}      once, first
    zygote → agent   {"op": "ready", "files", "folders", "names", "environment", …}   or "refused", "failed": {"reason"}
    agent → zygote   {"argv", "env", "cwd"} + [report_fd, log_fd]                            one per kernel
    kernel → agent   on report_fd, one line each: {"pid": …}, then {"ports": {"shell_port": …, …}}, then EOF

The zygote has one thread and no ZeroMQ context, no event loop, ever: these do not survive a fork.  It ends at EOF
of its socket; its kernels live on.  A kernel is forked twice, so that it becomes a child of the agent (a child
subreaper), which reaps it with its exact exit status whatever happens to the zygote.

Nothing outside the standard library is imported at the top, and nothing of roost at all: the environment of the
kernel need not have it.  A forked kernel runs the unmodified ``IPKernelApp`` and ends as a plain one does, by
leaving this script at its end: exit handlers, threads and exit codes are Python's own.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import itertools
import json
import mmap
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_PACKET_BYTES = 1 << 20
_REHEARSAL_S = 20.0
_SPARE_AFTER_S = 0.05
"""A spare child is forked when no launch has come for so long, so that it competes with none."""
_SPARES = 3
"""Children that wait for a launch; 1 MiB each, but the first, whose pages are ready."""
_POPULATE_READ, _POPULATE_WRITE = 22, 23
"""From Linux's mman.h (5.14); older kernels say EINVAL."""
_PAGE_PRESENT = 1 << 63
_PAGE_OWN = _PAGE_PRESENT | 1 << 56
"""Bits of /proc/PID/pagemap: in memory, mapped by nobody else."""
_BASE_PRELOAD = ("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.zmqshell", "ipykernel.debugger")


def serve(agent: socket.socket) -> Kernel | None:
    """Answer the agent until it hangs up (None), or return in a forked child that is to become a kernel."""
    warm: Warm | None = None
    spares: list[socket.socket] = []
    while True:
        is_full = warm is None or len(spares) == _SPARES
        if not select.select([agent], [], [], None if is_full else _SPARE_AFTER_S)[0]:
            assert warm is not None
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            size_buffers(ours, theirs)
            if fork_orphan():
                for mine in (agent, ours, *spares):
                    mine.close()
                return wait_as_spare(theirs, warm)
            theirs.close()
            spares.append(ours)
            make_ready(spares)
            continue
        packet, fds, _, _ = socket.recv_fds(agent, _PACKET_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        if not packet:
            return None
        if not fds:
            warm, answer = prepare(json.loads(packet))
            agent.send(answer)
            del packet, answer  # or every child would write to the pages that it frees them on
            continue
        if not hand_over(spares, packet, fds) and fork_orphan():
            agent.close()
            return Kernel(json.loads(packet), *fds, warm=warm)
        for fd in fds:
            os.close(fd)


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


def make_ready(spares: list[socket.socket]) -> None:
    """Have the spare that is next touch its pages; the others stay small."""
    with contextlib.suppress(OSError):  # a spare that was killed: hand_over passes over it
        spares[0].send(b"{}", socket.MSG_DONTWAIT)


def wait_as_spare(zygote: socket.socket, warm: Warm) -> Kernel | None:
    """A child forked ahead of its launch; None when the zygote went."""
    os.setsid()
    while True:
        packet, fds, _, _ = socket.recv_fds(zygote, _PACKET_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        if fds or not packet:
            zygote.close()
            return Kernel(json.loads(packet), *fds, warm=warm, is_spare=True) if packet else None
        warm.touch_pages()


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
        rehearsed, _ = rehearse(None)
        with recorded_environment(reads):
            for name in rehearsed:
                with contextlib.suppress(Exception):  # what cannot be imported here is the kernel's to import
                    importlib.import_module(name)
            warm_completion()
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
    changed = [path for path, changed_ns, *_ in answer["files"] if changed_ns > started_ns and path.endswith(".py")]
    if changed:
        return None, refusal(f"{changed[0]} changed while it was loaded", op="failed")
    packet = json.dumps(answer).encode()
    warm = Warm(request["args"])
    for name in before.keys() | os.environ.keys():
        if before.get(name) != os.environ.get(name):
            warm.environment_changes[name] = os.environ.get(name)
    del answer, before, reads, rehearsed, changed
    gc.collect()
    warm.plugs = plug_holes()
    gather_module_names()
    gc.freeze()
    _, warm.pages = rehearse(warm)
    return warm, packet


def refusal(reason: str, op: str = "refused") -> bytes:
    return json.dumps({"op": op, "reason": reason}).encode()


def warm_completion() -> None:
    """Have jedi parse what every completion needs: 0.5 s and 10 MiB that each kernel would else spend of its own."""
    try:
        import jedi

        for code, namespace in (("os.pa", {"os": os}), ("a.re", {"a": 1}), ("pri", {})):
            jedi.Interpreter(code, [namespace]).complete()
    except Exception:  # noqa: BLE001 - no jedi, or one that fails: completion is the kernel's
        pass


def plug_holes() -> list[Any]:
    """Allocate what is free between live objects, so that children allocate on fresh pages; to be kept.

    A child that fills the last free block of a page makes its own copy of that page for it. The objects of each of
    pymalloc's size classes are returned; what glibc's malloc had free is simply never given back.
    """
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            sys._debugmallocstats()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
        file.seek(0)
        rows = [line.split() for line in file.read().splitlines()]
    header = sys.getsizeof(b"")
    plugs: list[Any] = []
    for row in rows:  # class, block size, pools, blocks in use, blocks free
        if len(row) == 5 and all(cell.isdigit() for cell in row):
            size, free = int(row[1]), range(int(row[4]))
            plugs.append([bytes(size - header) for _ in free] if size > header else [float(n) for n in free])
    with contextlib.suppress(AttributeError):  # not glibc, or older than 2.33
        plug_malloc(ctypes.CDLL(None))
    return plugs


def gather_module_names() -> None:
    """Lay the keys of sys.modules out side by side: IPython makes a set of them, which writes to each."""
    modules = [((name + " ")[:-1], module) for name, module in sys.modules.items()]
    sys.modules.clear()
    sys.modules.update(modules)


def plug_malloc(libc: ctypes.CDLL) -> None:
    """Allocate every free chunk below the top of the heap, large ones first."""

    class Mallinfo2(ctypes.Structure):
        _fields_ = [
            (name, ctypes.c_size_t)
            for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
        ]

    libc.mallinfo2.restype = Mallinfo2
    libc.malloc.restype = libc.sbrk.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.sbrk.argtypes, libc.free.argtypes = (ctypes.c_size_t,), (ctypes.c_ssize_t,), (ctypes.c_void_p,)
    info = libc.mallinfo2()
    end = libc.sbrk(0)
    bottom, top = end - info.arena, end - info.keepcost
    size = 120_000  # above, malloc maps memory of its own
    while size >= 24:
        chunk = libc.malloc(size)
        if bottom <= chunk < top:
            continue
        libc.free(chunk)
        size = size * 9 // 10 if size > 1024 else size - 16


@contextlib.contextmanager
def recorded_environment(reads: set[str]) -> Iterator[None]:
    """Note in `reads` every name that is looked up in os.environ."""
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


def rehearse(warm: Warm | None) -> tuple[list[str], array.array[int]]:
    """The modules that a real kernel has imported after some use, and the memory it has written to.

    Both are empty when they could not be found out.

    A forked child is the kernel, another its client; neither touches the user's profile or history.
    """
    folder = tempfile.mkdtemp(prefix="roost-rehearsal-")
    names, names_in = os.pipe()
    report, report_in = os.pipe()
    children = []
    try:
        connection_file = os.path.join(folder, "kernel.json")
        info = {"ip": "127.0.0.1", "transport": "tcp", "key": os.urandom(16).hex(), "signature_scheme": "hmac-sha256"}
        with open(os.open(connection_file, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            json.dump({**info, **dict.fromkeys(PORT_NAMES, 0)}, file)
        children.append(os.fork())
        if children[-1] == 0:
            os.close(names_in)
            argv = ["-f", connection_file, *(warm.args if warm else [])]
            env = {**os.environ, "IPYTHONDIR": folder}
            null = os.open(os.devnull, os.O_WRONLY)
            run_or_die(Kernel({"argv": argv, "env": env, "cwd": folder}, report_in, null, warm=warm).run)
        children.append(os.fork())
        if children[-1] == 0:
            os.close(report_in)
            run_or_die(lambda: play_client(connection_file, report, names_in, warm is None))
        os.close(names_in)
        names_in = -1
        heard = b""
        deadline = time.monotonic() + _REHEARSAL_S
        while select.select([names], [], [], max(0.0, deadline - time.monotonic()))[0]:
            chunk = os.read(names, 65536)
            if not chunk:
                break
            heard += chunk
        if not heard.endswith(b"]"):
            return [], array.array("Q")
        return list(json.loads(heard)), written_pages(children[0])
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        for fd in (names, names_in, report, report_in):
            if fd >= 0:
                os.close(fd)
        shutil.rmtree(folder, ignore_errors=True)


def run_or_die(function: Callable[[], None]) -> NoReturn:
    try:
        function()
    finally:
        os._exit(1)


def play_client(connection_file: str, report: int, names_in: int, is_thorough: bool) -> None:
    """What a notebook does with a fresh kernel; then have the kernel's modules written to `names_in`."""
    from jupyter_client.blocking import BlockingKernelClient

    ports = {}
    with open(report, "rb") as lines:
        while not ports:
            ports = json.loads(lines.readline()).get("ports")
    with open(connection_file, "rb") as file:
        info = json.load(file)
    client = BlockingKernelClient()
    client.load_connection_info({**info, **ports})
    client.start_channels(hb=False)
    listing = os.path.join(os.path.dirname(connection_file), "modules.json")
    cell = f"import sys, json; json.dump(sorted(sys.modules), open({listing!r}, 'w')); del sys, json"
    client.kernel_info(reply=True, timeout=_REHEARSAL_S)
    if is_thorough:
        client.comm_info(reply=True, timeout=_REHEARSAL_S)
        for code in ("import os; print(1)", "{'a': 1}", "1/0", "%pwd"):
            client.execute(code, reply=True, timeout=_REHEARSAL_S)
        client.complete("os.pat", reply=True, timeout=_REHEARSAL_S)
        client.inspect("os.path", reply=True, timeout=_REHEARSAL_S)
        client.history(hist_access_type="tail", n=1, reply=True, timeout=_REHEARSAL_S)
        client.execute(cell, reply=True, timeout=_REHEARSAL_S)
    else:
        client.execute("1+1", reply=True, timeout=_REHEARSAL_S)
        with open(listing, "w") as file:
            file.write("[]")
    with open(listing, "rb") as file, open(names_in, "wb") as out:
        out.write(file.read())


def fingerprint() -> dict[str, Any]:
    """What a fresh interpreter would read in order to import the same, with its stamps; see the agent's `Fingerprint`.

    Of the standard library the folders stand for their files (half as many stats): it is replaced as a whole.
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
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        paths.update(line.split(maxsplit=5)[5].strip() for line in maps if " r-xp " in line and "/" in line)
    return {
        "files": [[path, *stamp(path)] for path in sorted(paths) if stamp(path)],
        "folders": [[path, *stamp(path)] for path in sys.path if path not in paths and stamp(path)],
        "names": sorted({name.partition(".")[0] for name in sys.modules}),
    }


def stamp(path: str) -> tuple[int, ...]:
    """Modification time in ns, size and inode; nothing when there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


class Warm:
    """What a zygote has ready for its kernels beside the imported modules."""

    def __init__(self, args: list[str]) -> None:
        from ipykernel import ipkernel
        from ipykernel.kernelapp import IPKernelApp

        self.args = args
        self.pages = array.array("Q")
        self.environment_changes: dict[str, str | None] = {}
        """What the preloaded modules did to os.environ while they were imported: done again in each kernel."""
        self.plugs: list[Any] = []
        self.launcher = launcher_path()
        self.app: Any = IPKernelApp.instance()
        self.app.parent_handle = 1  # no parent to watch, and no advice about Ctrl-C in the log
        try:
            self.app.parse_command_line(["-f", "connection.json", *args])
        except (SystemExit, Exception):  # noqa: BLE001 - the kernel parses it again, and says so in its own log
            IPKernelApp.clear_instance()
            self.app = None
        self.modules = ModuleFiles() if hasattr(ipkernel, "sys") else None
        self.madvise = ctypes.CDLL(None).madvise
        self.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)

    def touch_pages(self) -> None:
        """Fault in at once what a kernel will write to: one by one, page faults are half of a forked kernel's start."""
        pages, self.pages = self.pages, array.array("Q")
        for n in range(0, len(pages), 3):
            if self.madvise(pages[n], pages[n + 1], pages[n + 2]) != 0:
                return

    def application(self, argv: list[str]) -> Any:
        """The application, its command line parsed."""
        from ipykernel.kernelapp import IPKernelApp

        if self.app is None or argv[2:] != self.args:
            IPKernelApp.clear_instance()
            app = IPKernelApp.instance()
            app.parent_handle = 1
            return app
        self.app.argv = argv
        self.app.config.IPKernelApp.connection_file = self.app.connection_file = argv[1]
        self.app.parse_command_line = lambda argv=None: None
        return self.app


class ModuleFiles:
    """Stands in for ``sys`` while ipykernel lists the files of all modules: walking them writes to 1,200 pages.

    A copy of the zygote's part of that list, laid out side by side, is all that is read then.
    """

    def __init__(self) -> None:
        self.count = len(sys.modules)
        files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
        self.known = {n: types.SimpleNamespace(__file__=(f + " ")[:-1] if f else None) for n, f in enumerate(files)}

    @property
    def modules(self) -> dict[Any, Any]:
        added = list(itertools.islice(reversed(sys.modules.items()), max(0, len(sys.modules) - self.count)))
        return {**self.known, **dict(reversed(added))}

    def __getattr__(self, name: str) -> Any:
        return getattr(sys, name)


def written_pages(pid: int) -> array.array[int]:
    """The pages of child `pid` that are its own by now, or mapped from files, among those of this process.

    As flat triples for madvise: address, bytes, advice.
    """
    runs = array.array("Q")
    try:
        with open("/proc/self/maps") as maps, open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
            for line in maps:
                addresses, mode = line.split()[:2]
                start, stop = (int(address, 16) for address in addresses.split("-"))
                if mode[3] != "p" or mode[0] != "r" or "[v" in line or "[stack" in line:
                    continue
                pagemap.seek(start // mmap.PAGESIZE * 8)
                entries = array.array("Q", pagemap.read((stop - start) // mmap.PAGESIZE * 8))
                mask, advice = (_PAGE_OWN, _POPULATE_WRITE) if mode[1] == "w" else (_PAGE_PRESENT, _POPULATE_READ)
                for is_own, run in itertools.groupby(range(len(entries)), lambda n: entries[n] & mask == mask):  # noqa: B023
                    if is_own:
                        pages = list(run)
                        runs.extend((start + pages[0] * mmap.PAGESIZE, len(pages) * mmap.PAGESIZE, advice))
    except OSError:
        pass  # no /proc, or a hardened one: the kernel faults its pages in as it goes
    return runs


class Kernel:
    """What a forked child needs in order to become a kernel; ``run`` returns when the kernel has ended."""

    def __init__(
        self, request: dict[str, Any], report_fd: int, log_fd: int, *, warm: Warm | None, is_spare: bool = False
    ) -> None:
        self.request = request
        self.report_fd = report_fd
        self.log_fd = log_fd
        self.warm = warm
        self.is_spare = is_spare

    def run(self) -> None:
        self.take_over_process()
        from ipykernel import ipkernel
        from ipykernel.kernelapp import IPKernelApp

        app: Any = self.warm.application(self.request["argv"]) if self.warm else IPKernelApp.instance()
        hook_ports(app, self.report)
        if self.warm and self.warm.modules:
            ipkernel.sys = self.warm.modules
        try:
            app.initialize()
        finally:
            ipkernel.sys = sys
        app.start()

    def take_over_process(self) -> None:
        """Session, descriptors, environment, folder, signals and random numbers as in a fresh process."""
        if not self.is_spare:
            os.setsid()
        self.report({"pid": os.getpid()})
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (self.log_fd, 1), (self.log_fd, 2)):
            os.dup2(source, target)
        os.close(null)
        os.close(self.log_fd)
        os.environ.clear()
        os.environ.update(self.request["env"])
        changes = self.warm.environment_changes.items() if self.warm else ()
        for name, value in (*changes, ("JPY_PARENT_PID", None)):
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        time.tzset()
        tempfile.tempdir = None
        os.chdir(self.request["cwd"])
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        try:
            with open("/proc/self/oom_score_adj", "w") as file:
                file.write("500")
        except OSError:
            pass
        if "numpy.random" in sys.modules:
            sys.modules["numpy.random"].seed()
        main = types.ModuleType("__main__")
        main.__file__ = sys.argv[0] = self.warm.launcher if self.warm else launcher_path()
        sys.modules["__main__"] = main
        sys.argv[1:] = self.request["argv"]
        sys.orig_argv[-3:] = ["-m", "ipykernel_launcher", *sys.argv[1:]]
        set_title([part.encode(errors="surrogateescape") for part in sys.orig_argv])

    def report(self, message: dict[str, Any]) -> None:
        os.write(self.report_fd, json.dumps(message).encode() + b"\n")


def set_title(argv: list[bytes]) -> None:
    """Show `argv` as this process's command line, as far as there is room for it."""
    try:
        with open("/proc/self/stat") as file:
            start, stop = (int(field) for field in file.read().rpartition(")")[2].split()[45:47])
    except (OSError, ValueError):
        return
    if 0 < start < stop:
        ctypes.memmove(start, b"\0".join(argv)[: stop - start - 1].ljust(stop - start, b"\0"), stop - start)


def launcher_path() -> str:
    spec = importlib.util.find_spec("ipykernel_launcher")
    return spec.origin if spec and spec.origin else "ipykernel_launcher.py"


def hook_ports(app: Any, report: Any) -> None:
    """Make `app` give up fixed ports that are taken, and report its ports once all five are bound."""
    from ipykernel import kernelapp

    plain_init_connection_file, plain_init_heartbeat = app.init_connection_file, app.init_heartbeat

    def init_connection_file() -> None:
        plain_init_connection_file()
        if app.transport == "tcp" and not all(port_is_free(app.ip, getattr(app, name)) for name in PORT_NAMES):
            for name in PORT_NAMES:
                setattr(app, name, 0)

    def init_heartbeat() -> None:
        bound = threading.Event()
        plain_class: Any = kernelapp.Heartbeat

        class ReportingHeartbeat(plain_class):  # type: ignore[misc]
            def _bind_socket(self) -> None:
                super()._bind_socket()
                bound.set()

        kernelapp.Heartbeat = ReportingHeartbeat
        try:
            plain_init_heartbeat()
        finally:
            kernelapp.Heartbeat = plain_class
        if not bound.wait(10):
            raise RuntimeError("the heartbeat's port could not be bound")
        app.hb_port = app.heartbeat.port
        report({"ports": {name: getattr(app, name) for name in PORT_NAMES}})

    app.init_connection_file, app.init_heartbeat = init_connection_file, init_heartbeat


def port_is_free(ip: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if ip == "*" else ip, port))
        except OSError:
            return False
    return True


def main() -> None:
    here = os.path.dirname(os.path.realpath(__file__))
    if sys.path and os.path.realpath(sys.path[0]) == here:
        del sys.path[0]
    agent = socket.socket(fileno=int(sys.argv[1]))
    set_title([part.encode(errors="surrogateescape") for part in sys.orig_argv[:-1]])  # without the room for longer ones
    os.set_inheritable(agent.fileno(), False)
    kernel = serve(agent)
    if kernel is None:
        os._exit(0)
    kernel.run()


if __name__ == "__main__":
    main()
