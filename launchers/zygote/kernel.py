"""How a forked child becomes a kernel: it runs the unmodified IPKernelApp in a process like a fresh one."""

from __future__ import annotations

import array
import contextlib
import fcntl
import importlib.util
import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

from .ending import end_process, end_standby
from .memory import ModuleFiles, find_madvise
from .shown_process import show
from .standby import Standby

PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_MOST_WAITING = 5_000
"""How many outputs may wait for a client. ZeroMQ's default is 1,000. On a busy machine, the thread that sends gets no
processor while the kernel displays thousands, and the rest would be lost.
"""
_NO_PARENT = "1"
"""The value of JPY_PARENT_PID, which libraries take as the sign of a notebook. ipykernel does not watch process 1."""
_PR_SET_DUMPABLE = 4  # from linux/prctl.h
_STANDBYS_END = 7, 1
"""The first ipykernel in which a standby ends at a shutdown request. Before, two of its sockets stay open."""
_DESCRIPTORS = 256
"""How many descriptors a kernel gets room for before its threads start."""


class WarmState:
    """The things that a zygote prepares for its kernels.

    `environment_changes` are variables that preloaded modules have changed: each kernel repeats these
    changes. `keeps_tempdir` is true if start-up code has chosen the folder for temporary files.
    """

    def __init__(self, args: list[str]) -> None:
        from ipykernel import ipkernel
        from ipykernel._version import version_info
        from ipykernel.kernelapp import IPKernelApp

        self.args = args
        self.pages = array.array("Q")
        self.environment_changes: dict[str, str | None] = {}
        self.keeps_tempdir = False
        self.launcher = find_launcher()
        self.module_names: frozenset[str] = frozenset()
        own = __name__.partition(".")[0]
        self.own_names = [name for name in sys.modules if name.partition(".")[0] == own]
        self.app: Any = IPKernelApp.instance()
        self.app.parent_handle = 1  # watch no parent, and log no advice about Ctrl-C
        try:
            self.app.parse_command_line(["-f", "connection.json", *args])
        except (SystemExit, Exception):  # noqa: BLE001 - the kernel parses it again and logs the error
            IPKernelApp.clear_instance()
            self.app = None
        self.modules = ModuleFiles() if hasattr(ipkernel, "sys") else None
        self.madvise = find_madvise()
        self.builds_standbys = self.app is not None and tuple(version_info[:2]) >= _STANDBYS_END
        self.config_files: list[str] = []
        """Configuration files: if one exists, the zygote uses no standbys.

        Empty until the first standby is built.
        """

    def touch_pages(self) -> None:
        """Copy now all memory pages that a kernel will write to. One at a time, the copies take half of its start."""
        pages, self.pages = self.pages, array.array("Q")
        for n in range(0, len(pages), 3):
            if self.madvise(pages[n], pages[n + 1], pages[n + 2]) != 0:
                return

    def build_application(self, argv: list[str]) -> Any:
        """Return an `IPKernelApp` for `argv`. Reuse the prepared one if the arguments match."""
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


class KernelChild(NamedTuple):
    """A forked child that becomes a kernel.

    After the kernel's end, `run` ends the process, or returns if `warm` is None.

    `fds` are those of a launch, see main.py. A spare has called `begin_process` already, and it may be a
    standby. With version 1 of control groups, a standby's two ZeroMQ threads stay in the old group. The
    system counts their memory with the kernel's, but not the little CPU time that they use.
    """

    request: dict[str, Any]
    fds: Sequence[int]
    warm: WarmState | None
    is_spare: bool = False
    standby: Standby | None = None

    @property
    def channel_fd(self) -> int:
        return self.fds[0]

    @property
    def log_fd(self) -> int:
        return self.fds[1]

    @property
    def listeners(self) -> Sequence[int]:
        """Return the descriptors of the sockets that listen on the kernel's ports already."""
        return self.fds[2 : 2 + self.request["listeners"]]

    @property
    def entries(self) -> Sequence[int]:
        """Return the files through which this process enters its control group."""
        return self.fds[2 + self.request["listeners"] :]

    @property
    def is_started_early(self) -> bool:
        """True if the agent counts this kernel as started before it serves its ports.

        Clients can connect already.
        """
        return self.standby is not None and len(self.listeners) > 0

    def run(self) -> None:
        for each in self.entries:
            os.write(each, b"0")
            os.close(each)
        if not self.is_spare:
            begin_process(self.warm)
        app = self.build_application() if self.standby is None else self.adopt(self.standby)
        for name in self.warm.own_names if self.warm else ():
            del sys.modules[name]
        app.start()
        if self.warm:
            end_process(app, self.warm.module_names)

    def build_application(self) -> Any:
        self.report({"pid": os.getpid()})
        self.take_over_process()
        self.wait_until_confirmed()
        self.join_groups()
        for number in (1, 2):
            os.dup2(self.log_fd, number)
        os.close(self.log_fd)
        from ipykernel.kernelapp import IPKernelApp

        app: Any = self.warm.build_application(self.request["argv"]) if self.warm else IPKernelApp.instance()
        serve_on(app, self.listeners, self.report_ready)
        with show_modules(self.warm):
            app.initialize()
        return app

    def adopt(self, standby: Standby) -> Any:
        try:
            self.report({"pid": os.getpid()})
            standby.redirect(self.log_fd)
            self.take_over_process()
            if self.is_started_early:
                self.report({"standby": True})
            self.wait_until_confirmed()
            self.join_groups()
            serve_on(standby.app, self.listeners, self.report_ready)
            standby.connect(self.request["argv"])
        except BaseException:  # noqa: BLE001 - it is written to the log
            end_standby(self.log_fd)
        os.close(self.log_fd)
        standby.run_startup()
        return standby.app

    def take_over_process(self) -> None:
        """Set environment, folder and command line to those of the launch."""
        first = {**self.request["env"], "JPY_PARENT_PID": _NO_PARENT}
        wanted: dict[str, str | None] = dict(first)
        for changed_by in (self.warm, self.standby):
            wanted |= changed_by.environment_changes if changed_by else {}
        os.environ.clear()
        os.environ.update({name: value for name, value in wanted.items() if value is not None})
        time.tzset()
        if self.warm is None or not self.warm.keeps_tempdir:
            tempfile.tempdir = None
        os.chdir(self.request["cwd"])
        if self.request["umask"] is not None:
            os.umask(self.request["umask"])
        sys.argv[1:] = self.request["argv"]
        sys.orig_argv[0] = self.request.get("program", sys.orig_argv[0])
        sys.orig_argv[-3:] = ["-m", "ipykernel_launcher", *sys.argv[1:]]
        show(sys.orig_argv, first)

    def join_groups(self) -> None:
        """Join the groups of the launch. Before, the agent has set the limits: later, it may lack the right."""
        if groups := self.request.get("groups"):  # a rehearsal has none
            os.setgroups(groups[1:])
            os.setgid(groups[0])
            # A change of the group protects a process from its own user, until it executes a program.
            importlib.import_module("ctypes").CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)

    def report(self, message: dict[str, Any]) -> None:
        """Send a message to the agent. End this process if the agent has ended or gives it up."""
        try:
            os.write(self.channel_fd, json.dumps(message).encode())
        except BrokenPipeError:
            self.give_up()

    def report_ready(self) -> None:
        if not self.is_started_early:
            self.report({"ready": True})
        os.close(self.channel_fd)

    def wait_until_confirmed(self) -> None:
        """Wait until the agent has checked the zygote's files and recorded this process; end it if the agent does not.

        Before this function returns, a kernel must do nothing that others notice.
        """
        with contextlib.suppress(ConnectionError):
            if os.read(self.channel_fd, 1):
                return
        self.give_up()

    def give_up(self) -> NoReturn:
        """End this process, which has done nothing yet. Its ports are free before the agent sees its end."""
        for each in self.listeners:
            os.close(each)
        end_standby()


def begin_process(warm: WarmState | None) -> None:
    """Reset session, descriptors, signals and random numbers, as in a fresh process."""
    os.setsid()
    enlarge_descriptor_table()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("500")  # if memory runs out, the system kills kernels before the agent
    main_thread: Any = threading.main_thread()
    main_thread._native_id = threading.get_native_id()
    renew_random_state()
    main = types.ModuleType("__main__")
    main.__file__ = sys.argv[0] = warm.launcher if warm else find_launcher()
    sys.modules["__main__"] = main


def renew_random_state() -> None:
    """Seed the generators that do not notice a fork. Python's own `random` has a new seed already."""
    found: dict[str, Any] = sys.modules
    if "numpy.random" in found:
        found["numpy.random"].seed()
    if "torch" in found:
        found["torch"].default_generator.seed()
    if "multiprocessing.process" in found:
        multiprocessing = found["multiprocessing.process"]
        multiprocessing.current_process().authkey = os.urandom(32)


@contextlib.contextmanager
def show_modules(warm: WarmState | None) -> Iterator[None]:
    """While the block runs, let ipykernel use `warm.modules`, if there is one, in place of the module `sys`.

    ipykernel can then list all modules without writing to the memory pages that it shares with the zygote.
    """
    ipkernel: Any = importlib.import_module("ipykernel.ipkernel")
    if warm and warm.modules:
        ipkernel.sys = warm.modules
    try:
        yield
    finally:
        ipkernel.sys = sys


def prepare_standby(warm: WarmState) -> Standby:
    """Return a standby kernel in this process, which has called `begin_process`."""
    with show_modules(warm):
        return Standby(warm.build_application(["-f", "connection.json", *warm.args]))


def enlarge_descriptor_table() -> None:
    """Make room for descriptors while this process has one thread.

    Linux takes 10 to 20 ms to enlarge the table of a process with threads (`expand_fdtable`). The fifth channel of a
    client takes descriptor 64, and would wait for that.
    """
    with contextlib.suppress(OSError):  # the limit of open files is lower
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTORS - 1))


def serve_on(app: Any, listeners: Sequence[int], on_ready: Callable[[], object]) -> None:
    """Have `app` serve these sockets, which listen on its ports already. `on_ready` is called once it serves all five.

    Without listeners (transport ipc), `app` binds its ports itself.
    """
    kernelapp: Any = importlib.import_module("ipykernel.kernelapp")
    listener_of = {find_port(each): each for each in listeners}
    plain_bind, plain_init_heartbeat = app._try_bind_socket, app.init_heartbeat

    def hand_over(socket: Any, port: int) -> None:
        if port in listener_of:
            listener = listener_of.pop(port)
            os.set_blocking(listener, False)  # ZeroMQ's thread must not wait for a client that is gone again
            socket.setsockopt(kernelapp.zmq.USE_FD, listener)

    def bind(socket: Any, port: int) -> int:
        hand_over(socket, port)
        if socket.type in (kernelapp.zmq.PUB, kernelapp.zmq.XPUB):
            socket.setsockopt(kernelapp.zmq.SNDHWM, _MOST_WAITING)
        return int(plain_bind(socket, port))

    def init_heartbeat() -> None:  # it binds the last port, in a thread
        bound = threading.Event()
        plain_class: Any = kernelapp.Heartbeat

        class ServingHeartbeat(plain_class):  # type: ignore[misc]
            def _bind_socket(self) -> None:
                hand_over(self.socket, self.port)
                super()._bind_socket()
                bound.set()

        kernelapp.Heartbeat = ServingHeartbeat
        try:
            plain_init_heartbeat()
        finally:
            kernelapp.Heartbeat = plain_class
        if not bound.wait(10):
            raise RuntimeError("the heartbeat's port could not be bound")
        on_ready()

    app._try_bind_socket, app.init_heartbeat = bind, init_heartbeat


def find_port(fd: int) -> int:
    listener = socket.socket(fileno=fd)
    try:
        return int(listener.getsockname()[1])
    finally:
        listener.detach()


def find_launcher() -> str:
    spec = importlib.util.find_spec("ipykernel_launcher")
    return spec.origin if spec and spec.origin else "ipykernel_launcher.py"
