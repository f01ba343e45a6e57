"""A standby kernel: a forked child that has built the kernel already, and waits for its launch.

    in advance    all of `IPKernelApp.initialize` that does not depend on a launch: configuration, sockets, shell
    at a launch   the rest: connection file, ports, history, startup files

Until its launch, a standby has no Python thread but the main one, binds no port and writes no history. It serves only a
launch for which a fresh kernel would have done the same until then (`is_current`, `has_read`).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LATER = (
    "init_connection_file",
    "init_heartbeat",
    "write_connection_file",
    "log_connection_info",
    "init_gui_pylab",
    "init_extensions",
    "init_code",
)
"""The steps of `IPKernelApp.initialize` that depend on the launch, or run code of the user."""
_SOCKETS = ("shell", "stdin", "control", "iopub")
_CONFIG_FILES = ("ipython_config", "ipython_kernel_config")


class Standby:
    """A kernel that lacks only its launch. A launch calls `redirect`, `connect` and `run_startup`."""

    def __init__(self, app: Any) -> None:
        """Prepare `app`, an `IPKernelApp` with parsed arguments. Raises what its steps raise."""
        self.app = app
        self.reads: dict[str, str | None] = {}
        before = dict(os.environ)
        for name in _LATER:
            setattr(app, name, lambda: None)
        app._bind_socket = lambda socket, port: port
        # For TCP without keys, ipykernel would log a warning now.
        transport, app.transport = app.transport, "ipc"
        with record_environment(self.reads), hold_threads() as self._threads, hold_history():
            app.initialize()
        self._prepare_first_cell()
        app.transport = transport
        for name in (*_LATER, "_bind_socket"):
            delattr(app, name)
        self.environment_changes = {
            name: os.environ.get(name)
            for name in before.keys() | os.environ.keys()
            if before.get(name) != os.environ.get(name)
        }

    def describe(self) -> dict[str, Any]:
        """Return what `is_current` and `has_read` check: variables read, files absent, folders present.

        A standby never serves a user with a configuration file: such a file is code, which may read anything.
        """
        folders = [str(folder) for folder in self.app.config_file_paths]
        files = [
            os.path.join(folder, name + ending)
            for folder in folders
            for name in _CONFIG_FILES
            for ending in (".py", ".json")
        ]
        return {
            "reads": self.reads,
            "absent": files,
            "present": [self.app.profile_dir.location],
        }

    def _prepare_first_cell(self) -> None:
        """Make the objects that ipykernel would make during the first cell. This takes half of that cell's time.

        IPython chooses its printers at the first result: they depend on whether numpy is imported by then.
        """
        shell = self.app.shell
        shell.display_formatter.format(0)
        shell.display_formatter.formatters["text/plain"]._trait_values.pop("type_printers", None)
        shell.transform_cell("0")
        names: Any = tempfile
        _ = names._get_candidate_names().rng

    def redirect(self, log_fd: int) -> None:
        """Send the output of this process to the kernel's log from now on."""
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            # Without this attribute, ipykernel does not capture descriptors.
            copy = getattr(stream, "_original_stdstream_copy", None)
            os.dup2(log_fd, number if copy is None else copy, inheritable=copy is None)

    def connect(self, argv: list[str]) -> None:
        """Become the kernel of a launch. The process must have the launch's environment and working directory."""
        app, shell = self.app, self.app.shell
        app.argv = argv
        app.config.IPKernelApp.connection_file = app.connection_file = argv[1]
        app.init_connection_file()
        self._bind()
        app.init_heartbeat()
        app.write_connection_file()
        app.log_connection_info()
        app.kernel.record_ports({f"{name}_port": port for name, port in app._ports.items()})
        shell.starting_dir = os.getcwd()
        shell.history_manager.dir_hist[:] = [Path.cwd()]
        if name := os.environ.get("JPY_SESSION_NAME"):
            shell.user_ns["__session__"] = name
        self._open_history(shell.history_manager)
        self._start_threads()

    def run_startup(self) -> None:
        """Run the GUI setup, the extensions and the startup files of the user, as at each kernel's start.

        Also name a cell, as ipykernel does before it runs its first one: it looks for a folder for temporary files.
        """
        self.app.init_gui_pylab()
        self.app.init_extensions()
        self.app.init_code()
        with contextlib.suppress(OSError):  # no folder can be written to
            self.app.shell.compile.get_code_name("", "", 0)
        sys.stdout.flush()
        sys.stderr.flush()

    def _bind(self) -> None:
        """Bind the sockets, as `IPKernelApp.init_sockets` does."""
        app = self.app
        # Older versions of ipykernel know no keys.
        has_keys = getattr(app, "curve_secretkey", None) is not None
        for name in _SOCKETS:
            socket = app.iopub_thread.socket if name == "iopub" else getattr(app, f"{name}_socket")
            if has_keys:
                app._apply_curve_server_options(socket)
            setattr(app, f"{name}_port", app._bind_socket(socket, getattr(app, f"{name}_port")))
        if has_keys:
            app._apply_curve_client_options(app.debug_shell_socket)
        app.debug_shell_socket.connect(app.shell_socket.last_endpoint)

    def _start_threads(self) -> None:
        """Start the threads. The receivers of requests start last, with their handlers.

        If a request comes before its handler is set, ipykernel may leave it until the next request.
        """
        kernel, plain_start = self.app.kernel, self.app.kernel.start
        receivers = (self.app.control_thread, getattr(self.app, "shell_channel_thread", None))

        def start() -> None:
            del kernel.start
            plain_start()
            for thread in self._threads:
                if thread in receivers:
                    thread.start()

        kernel.start = start
        for thread in self._threads:
            if thread not in receivers:
                thread.start()

    def _open_history(self, history: Any) -> None:
        """Begin a session in the history, as `HistoryManager` does when it is made."""
        history.init_db()
        try:
            history.new_session()
        except Exception:
            history.log.exception("Failed to create history session in %s", history.hist_file)
            history._switch_to_memory_history()
        if history.save_thread in self._threads and history.hist_file == ":memory:":
            self._threads.remove(history.save_thread)
            history.save_thread = None


def is_current(standby: Mapping[str, Any]) -> bool:
    """True if the user still has no configuration file, and the standby's profile folder still exists."""
    return all(map(os.path.isdir, standby["present"])) and not any(map(os.path.exists, standby["absent"]))


def has_read(standby: Mapping[str, Any], env: Mapping[str, str]) -> bool:
    """True if `env` has the values that the standby has read. Variables JPY_* and KERNEL_* do not matter."""
    return all(
        env.get(name) == value
        for name, value in standby["reads"].items()
        if not name.startswith(("JPY_", "KERNEL_"))
    )


@contextlib.contextmanager
def record_environment(reads: dict[str, str | None]) -> Iterator[None]:
    """Add to `reads` each variable that is looked up in os.environ before it is set, with its value.

    Modules that are imported meanwhile may keep the class of os.environ, so it stays the plain one.
    """
    environ: Any = type(os.environ)
    plain_get, plain_set = environ.__getitem__, environ.__setitem__
    written: set[str] = set()

    def note(name: Any, value: str | None) -> None:
        if isinstance(name, str) and name not in written:
            reads.setdefault(name, value)

    def get(self: Any, name: str) -> str:
        try:
            value = str(plain_get(self, name))
        except KeyError:
            note(name, None)
            raise
        note(name, value)
        return value

    def set_value(self: Any, name: str, value: str) -> None:
        written.add(name)
        plain_set(self, name, value)

    environ.__getitem__, environ.__setitem__ = get, set_value
    try:
        yield
    finally:
        environ.__getitem__, environ.__setitem__ = plain_get, plain_set


@contextlib.contextmanager
def hold_threads() -> Iterator[list[threading.Thread]]:
    """Prevent threads from starting while the block runs. Yield the list of these threads."""
    plain = threading.Thread.start
    held: list[threading.Thread] = []
    threading.Thread.start = lambda self: held.append(self)  # type: ignore[method-assign]
    try:
        yield held
    finally:
        threading.Thread.start = plain  # type: ignore[method-assign]


@contextlib.contextmanager
def hold_history() -> Iterator[None]:
    """Keep IPython from opening its history while the block runs: unused standbys would leave empty sessions.

    Since IPython 9, an exit handler closes the history. It is registered already, because it must run after the shell's
    handler.
    """
    history: Any = sys.modules["IPython.core.history"]
    accessor, manager = history.HistoryAccessor, history.HistoryManager
    plain_init_db, plain_new_session = accessor.init_db, manager.new_session
    has_finalizer = hasattr(history, "weakref")
    accessor.init_db = lambda self: weakref.finalize(self, int).detach() if has_finalizer else None
    manager.new_session = lambda self, conn=None: None
    try:
        yield
    finally:
        accessor.init_db, manager.new_session = plain_init_db, plain_new_session
