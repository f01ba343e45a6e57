"""The first process of a pod or container: it forks the kernel, and then becomes the agent.

    python ARCHIVE FOLDER LABEL

ARCHIVE has this file as its `__main__`, roost's part of a node, and `start.json` (see `start_archive.py`). FOLDER, the
agent's folder, is made in the working directory unless it is absolute. `$NAME` in the settings' texts is a variable of
the environment, such as this node's address. LABEL tells people which kernel this is. The kernel's own command line is
shown in the room that these arguments take, so LABEL should be long.

Kernel and agent need the same libraries. This process imports the libraries once and forks before it imports roost
from ARCHIVE. The child becomes the kernel and never has a module of roost. Without a launch that can be forked, the
agent starts the kernel as usual.

This process reports the kernel to the service as soon as the kernel listens, and becomes the agent once the kernel has
nothing more to do. In a pod with half a CPU, both at once would take twice the time until the first answer. What the
kernel publishes meanwhile waits in a subscription, which the agent takes over for its journal.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import hashlib
import json
import os
import runpy
import shutil
import signal
import socket
import sys
import time
import types
import zipimport
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_MODULE = ["-m", "ipykernel_launcher"]
_NO_PARENT = "1"  # as in start.py
_FOLDER_OPTION = "cwd"  # as in messages.py
_KERNEL_SOCKETS = "kernel"  # as in launch_changes.py
_SOCKETS = {name: number for number, name in enumerate(_PORT_NAMES, start=1)}
_DESCRIPTORS = 256
_MOST_CANDIDATES = 2_000  # as in ports.py
_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_OOM_SCORE = "500"
_OBJECTS_AT_START = 200_000
"""The threshold of garbage collection at the start: more objects than a starting kernel makes."""
_LISTENS_S, _LOOK_S = 5.0, 0.01
"""How long this process waits for its kernel's ports before it becomes the agent, and how often it looks."""
_REPORTED_MS = 500
"""How long the service may take to answer a report."""
_USED, _STARTED = slice(11, 13), 19
"""The places of two values in `read_stat`: the processor time, and the start since the boot, both in ticks."""
_IDLE_S, _BUSY_S = 0.1, 2.0
"""After how long without processor time a kernel counts as idle, and how long to wait for a busy kernel."""


def main() -> int:
    code, why_not_fork = load(sys.argv[0], "startup")["look"](None)[:2]
    # The system ignores SIGTERM for the first process of a pod until it has a handler.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    close_inherited_files()
    delay_collections()
    import_libraries()
    archive, folder = sys.argv[0], os.path.abspath(sys.argv[1])
    start = json.loads(zipimport.zipimporter(archive).get_data("start.json"))
    settings = fill_in(start["settings"])
    del sys.path[0]  # the archive
    forked, become_kernel = fork_kernel(
        folder, settings, start["assignment"], (code, why_not_fork), load(archive, "shown_process")["show"]
    )
    if become_kernel is not None:
        become_kernel()
        return 0
    sys.path.insert(0, archive)
    assignment = start["assignment"]
    output = None
    if forked is not None and assignment["report_to"] and len(settings["ports"]) == 1:
        output = report_kernel(forked, settings, assignment)
    from roost.launchers.agent.main import main as run_agent

    return run_agent([folder, json.dumps(settings)], assigned=assignment, forked=forked, output=output)


def load(archive: str, name: str) -> dict[str, Any]:
    """Return the names in a module of `launchers/zygote/`. A kernel that is forked here does not have the module."""
    found: dict[str, Any] = {"__name__": name}
    exec(zipimport.zipimporter(f"{archive}/roost/launchers/zygote").get_code(name), found)
    return found


def close_inherited_files() -> None:
    """Close all files that the program around this process has left open, except the standard streams.

    The kernel is forked from this process, and would keep them. Python's own files are not inheritable.
    """
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        with contextlib.suppress(OSError):  # the listing's own file is closed already
            if number > 2 and os.get_inheritable(number):
                os.close(number)


def delay_collections() -> None:
    """Collect no garbage while libraries are loaded: this saves a seventh of a kernel's processor time at its start.

    The first collection brings the usual thresholds back, in the kernel and in the agent.
    """
    usual = gc.get_threshold()

    def restore(phase: str, info: object) -> None:
        gc.callbacks.remove(restore)
        gc.set_threshold(*usual)

    gc.callbacks.append(restore)
    gc.set_threshold(_OBJECTS_AT_START, *usual[1:])


def import_libraries() -> None:
    """Import the libraries that both the kernel and the agent need, before the fork."""
    import asyncio  # noqa: F401
    import dataclasses  # noqa: F401
    import tempfile  # noqa: F401

    import zmq.asyncio  # noqa: F401


def fill_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the values of environment variables, and with an IP address as `address`."""
    filled = {
        name: os.path.expandvars(value) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    if address := filled["address"]:
        try:
            filled["address"] = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0]
        except OSError as problem:
            sys.exit(f"this node's own address {address} is unknown here: {problem}")
    return filled


def fork_kernel(
    folder: str,
    settings: Mapping[str, Any],
    assignment: Mapping[str, Any],
    startup: tuple[Sequence[str], str],
    show: Callable[..., None],
) -> tuple[dict[str, Any] | None, Callable[[], None] | None]:
    """Fork the assigned kernel if possible.

    In the parent, return the fields of a `PodKernel` and None. In the child, return None and a function that runs the
    kernel. Without a fork, return None and None.
    """
    launch, request = assignment["reserve"]["launch"], assignment["reserve"]["lease"]["request"]
    env = {**os.environ, **launch["env"]} if launch else {}
    must_lock = settings["gpu_visibility"] == "locks" and request["gpus"]  # the agent chooses devices first
    if launch is None or must_lock or not may_fork(launch, env, *startup):
        return None, None
    cwd = choose_folder(launch["cwd"], request)
    if not cwd:
        return None, None
    began = time.perf_counter()
    if sockets := settings["socket_folder"]:
        connection: dict[str, Any] | None = {
            **launch["connection"], "transport": "ipc", "ip": f"{sockets}/{_KERNEL_SOCKETS}", **_SOCKETS
        }  # fmt: skip
    else:
        connection = choose_ports(
            {**launch["connection"], "ip": settings["address"] or launch["connection"]["ip"]},
            settings["kernel_ports"],
        )
    if connection is None:
        return None, None
    home = os.path.join(folder, "kernels", hashlib.sha256(launch["kernel_id"].encode()).hexdigest()[:32])
    for each in (folder, os.path.dirname(home), home):
        os.makedirs(each, mode=0o700, exist_ok=True)
    log_fd = os.open(os.path.join(home, "log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    connection_file = os.path.join(home, name_connection_file(launch["kernel_id"]))
    with open(os.open(connection_file, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        shown = {key: value for key, value in connection.items() if value is not None}
        shown.pop("interrupt_mode", None)
        json.dump(shown, file)
    argv = [part.replace("{connection_file}", connection_file) for part in launch["argv"]]
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        if not settings["shares_session"]:
            os.setsid()
        return None, lambda: run_kernel(argv, env, cwd, log_fd, parent, show)
    os.close(log_fd)
    ports = {name: connection[name] for name in _PORT_NAMES}
    forked = {
        "launch_id": launch["launch_id"],
        "pid": pid,
        "started_at": int(read_stat(pid)[_STARTED]) / os.sysconf("SC_CLK_TCK"),
        "ip": connection["ip"],
        "ports": ports,
        "spawned_ms": (time.perf_counter() - began) * 1e3,
    }
    return forked, None


def choose_folder(wanted: str, request: Mapping[str, Any]) -> str:
    """Return the folder where the kernel starts: that of the request's option, else `wanted` or the user's home.

    Return an empty text if the option names a missing folder: the agent refuses that, with a sentence.
    """
    if option := (request.get("options") or {}).get(_FOLDER_OPTION):
        folder = os.path.expanduser(option)
        return folder if os.path.isdir(folder) else ""
    return next(filter(os.path.isdir, (wanted, os.path.expanduser("~"))), os.getcwd())


def report_kernel(kernel: dict[str, Any], settings: Mapping[str, Any], assignment: dict[str, Any]) -> Any:
    """Report a forked kernel to the service once the kernel listens; on success, wait until the kernel is idle.

    Return a subscription to the messages that the kernel publishes meanwhile; None if the kernel does not
    listen.
    """
    import zmq

    from roost.launchers.agent.output.subscription import subscribe

    began = time.perf_counter()
    iopub_port = kernel["ports"]["iopub_port"]  # ipykernel binds shell, stdin and control before it
    if not wait_until_listening(kernel["pid"], kernel["ip"], iopub_port):
        return None
    listening_ms = kernel["spawned_ms"] + (time.perf_counter() - began) * 1e3
    keys = (
        assignment["reserve"]["launch"]["connection"][f"curve_{name}key"] for name in ("public", "secret")
    )
    output = subscribe(zmq.Context(), f"tcp://{kernel['ip']}:{iopub_port}", *keys)
    (port,) = settings["ports"]
    report = {"ip": kernel["ip"], "port": port, "kernel": {**kernel, "listening_ms": listening_ms}}
    if call_service(assignment, {"id": 1, "op": "listens", "args": report}):
        assignment["report_to"] = ""
        wait_until_idle(kernel["pid"])
    return output


def call_service(assignment: Mapping[str, Any], call: Mapping[str, Any]) -> bool:
    """Send a call to the service and return True if it succeeds. `RpcClient` is not imported yet."""
    import zmq

    keys = assignment["keys"]
    (service,) = keys["clients"]
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_secretkey, socket.curve_publickey = keys["secret"].encode(), keys["public"].encode()
        socket.curve_serverkey = service.encode()
        try:
            socket.connect(assignment["report_to"])
            socket.send_json(call, zmq.NOBLOCK)
            return bool(socket.poll(_REPORTED_MS)) and "ok" in json.loads(socket.recv())
        except zmq.ZMQError as problem:
            print(f"the service at {assignment['report_to']} does not answer: {problem}", file=sys.stderr)
            return False


def wait_until_listening(pid: int, ip: str, port: int) -> bool:
    """Return True as soon as a child listens; False if it has ended, or after `_LISTENS_S`."""
    until = time.monotonic() + _LISTENS_S
    while time.monotonic() < until and not has_ended(pid):
        try:
            socket.create_connection((ip, port), timeout=1).close()
            return True
        except OSError:
            time.sleep(_LOOK_S)
    return False


def has_ended(pid: int) -> bool:
    """True if a child has ended. The child is not reaped, so that the agent can collect its exit code."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third one on."""
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()


def wait_until_idle(pid: int) -> None:
    """Return once a child takes no processor time, or has ended, or after `_BUSY_S`."""
    until = time.monotonic() + _BUSY_S
    before = -1
    while time.monotonic() < until and not has_ended(pid):
        used = sum(map(int, read_stat(pid)[_USED]))
        if used == before:
            return
        before = used
        time.sleep(_IDLE_S)


def may_fork(
    launch: Mapping[str, Any], env: Mapping[str, str], startup_code: Sequence[str], why_not_fork: str
) -> bool:
    """True if the kernel can be forked: the launch allows it, and it is an ipykernel in this Python with TCP ports.

    Also, the variables that Python reads at its start must have the same values as here. With start-up code, these are
    all variables without JPY_* and KERNEL_*.
    """
    argv = launch["argv"]
    names = {*os.environ, *env}
    if startup_code:
        names = {name for name in names if not name.startswith(("JPY_", "KERNEL_"))}
    else:
        names = {name for name in names if name == "HOME" or name.startswith(("PYTHON", "LD_"))}
    return bool(
        launch["may_fork"]
        and not why_not_fork
        and argv[1:3] == _MODULE
        and launch["connection"]["transport"] == "tcp"
        and shutil.which(argv[0], path=env.get("PATH", os.defpath)) == sys.executable
        and all(os.environ.get(name) == env.get(name) for name in names)
    )


def name_connection_file(kernel_id: str) -> str:
    """Return the same as `shared_values.name_connection_file`, a module that a kernel forked here must not have."""
    name = "".join(each for each in kernel_id if each.isprintable() and each not in "/\\")
    return f"kernel-{name.encode()[:200].decode(errors='ignore')}.json"


def choose_ports(connection: dict[str, Any], allowed: Sequence[int]) -> dict[str, Any] | None:
    """Return the connection with free ports; None if a port that it names is taken, or if too few are free.

    `allowed` has the lowest and the highest port that it may have; empty: any.
    """
    probes: list[socket.socket] = []
    try:
        for name in _PORT_NAMES:
            probes.append(probe := socket.socket())
            if connection[name] or not allowed:
                probe.bind((connection["ip"], connection[name]))
            else:
                bind_one(probe, connection["ip"], *allowed)
            connection[name] = probe.getsockname()[1]
    except OSError:
        return None
    finally:
        for probe in probes:
            probe.close()
    return connection


def bind_one(probe: socket.socket, ip: str, lowest: int, highest: int) -> None:
    """Bind a socket to a free port of a range, from a random one on. Raises `OSError`."""
    count = highest - lowest + 1
    first = int.from_bytes(os.urandom(4), "big")
    for number in range(min(count, _MOST_CANDIDATES)):
        try:
            probe.bind((ip, lowest + (first + number) % count))
            return
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, "no port is free")


def run_kernel(
    argv: list[str], env: Mapping[str, str], cwd: str, log_fd: int, parent: int, show: Callable[..., None]
) -> None:
    """Run the kernel's `argv` in this process, made like a fresh one. Return when the kernel has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.suppress(OSError):  # see `enlarge_descriptor_table` in zygote/kernel.py
        os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTORS - 1))
    with open(os.devnull, "rb") as null:
        for source, target in ((null.fileno(), 0), (log_fd, 1), (log_fd, 2)):
            os.dup2(source, target)
    os.close(log_fd)
    os.environ.clear()
    os.environ.update({**env, "JPY_PARENT_PID": _NO_PARENT})
    time.tzset()
    os.chdir(cwd)
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(_OOM_SCORE)
    except OSError:  # the container does not allow it
        pass
    sys.path.insert(0, os.getcwd())
    sys.argv = [argv[2], *argv[3:]]
    sys.orig_argv[:] = argv
    show(argv, os.environ)
    sys.modules["__main__"] = types.ModuleType("__main__")
    runpy.run_module(_MODULE[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.exit(main())
