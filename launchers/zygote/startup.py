"""The code that runs while an interpreter starts: `sitecustomize`, `usercustomize`, and lines of .pth files.

A kernel that is executed runs this code in its own environment. A forked kernel inherits what the code did in the
zygote. That is the same only if the zygote has the kernel's whole environment, and if the code has begun nothing that
ends with its process or counts for it.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import resource
import signal
import site
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

_HARMLESS = tuple(
    re.compile(pattern)
    for pattern in (
        # of setuptools, which reads only SETUPTOOLS_USE_DISTUTILS
        r"import os; var = 'SETUPTOOLS_USE_DISTUTILS'; .*__import__\('_distutils_hack'\)(\.add_shim\(\))?;?",
        # of editable installs by setuptools and hatchling, and of namespace packages
        r"import (__editable___\w+_finder); \1\.install\(\)",
        r"import _editable_impl_\w+",
        r"import sys, types, os;\s?has_mfs = sys\.version_info > \(3, 5\);.*",
        # of virtualenv, which mends distutils
        r"import _virtualenv",
    )
)
"""Lines of .pth files that package installers write. They read no variable except those in `VARIABLES`."""
VARIABLES = ("SETUPTOOLS_USE_DISTUTILS",)
_IS_STANDARD = os.path.dirname(os.__file__) + os.sep
_RESET_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT)
"""The signals that each forked kernel resets (`begin_process`)."""
_GENERATORS = {"random", "numpy.random"}
_PR_GET_PDEATHSIG, _PR_GET_CHILD_SUBREAPER = 2, 37  # from linux/prctl.h
_FRESH_S = 20.0
"""How long a fresh interpreter may take to report its random state."""
_MASK_LOOKS, _MASK_LOOK_S = 50, 0.02
"""How often the signal masks are compared, and the pause between: a second together."""
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class Startup(NamedTuple):
    """A description of the interpreter before the zygote's first line."""

    code: list[str]
    """The names of start-up code that may read any variable: modules and .pth files."""
    why_not_fork: str
    """Why a kernel must be executed: the work that start-up code has begun, as a clause. Empty if there is none."""
    changes: dict[str, str | None]
    """The environment variables that it has set or removed."""
    has_tempdir: bool
    """True if it has chosen a folder for temporary files."""


def look(agent_fd: int) -> Startup:
    """Describe this process. Call this before anything is imported that could change the answer.

    `agent_fd` is the zygote's own socket.
    """
    began = list(_find_began(agent_fd))
    code = list(_find_code())
    reason = f"{' and '.join(code) or 'start-up code'} {began[0]}" if began else ""
    has_tempdir = getattr(sys.modules.get("tempfile"), "tempdir", None) is not None
    return Startup(code, reason, _find_changes(), has_tempdir)


def _find_code() -> Iterator[str]:
    for name in ("sitecustomize", "usercustomize"):
        path = getattr(sys.modules.get(name), "__file__", None)
        if path and not (path.startswith(_IS_STANDARD) and "-packages" not in path):
            yield path
    if sys.flags.no_site:
        return
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    for folder in dict.fromkeys(folders):
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(".pth"))
        except OSError:
            continue
        for name in names:
            path = os.path.join(folder, name)
            if any(not _is_harmless(line) for line in _read_code(path)):
                yield path


def _read_code(path: str) -> list[str]:
    """Return the lines of a .pth file that `site` runs."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return [line.strip() for line in file if line.startswith(("import ", "import\t"))]
    except OSError:
        return []


def _is_harmless(line: str) -> bool:
    return any(pattern.fullmatch(line) for pattern in _HARMLESS)


def _find_began(agent_fd: int) -> Iterator[str]:
    if len(os.listdir("/proc/self/task")) > 1:
        yield "has started a thread"
    if _is_traced():
        yield "has begun to trace or measure this process"
    if any(signal.getitimer(each)[0] for each in _TIMERS):
        yield "has set a timer"
    if _count_exit_handlers() > 0:
        yield "has registered a function for the end of the process"
    if _GENERATORS & sys.modules.keys() and _digest_random_state() == _ask_fresh_interpreter():
        yield "has seeded random numbers"
    yield from _find_inherited(agent_fd)


def _find_inherited(agent_fd: int) -> Iterator[str]:
    """Yield what start-up code has changed, if this process is a child of the agent. Another parent may do the same."""
    if has_children():
        yield "has started a process"
    if any(number > 2 and number != agent_fd for number in _list_descriptors()):
        yield "has opened a file or a connection"
    usual = (signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler)  # nohup has some of them ignored
    if any(signal.getsignal(number) not in usual for number in _RESET_SIGNALS) or _has_changed_mask():
        yield "handles signals"
    if not _has_usual_streams():
        yield "has redirected a standard stream"
    if _has_changed("Umask"):
        yield "has changed the umask"
    if any(map(_has_changed, ("Uid", "Gid", "Groups"))):
        yield "has changed the user or the groups"
    if _read_priority(0) != _read_priority(os.getppid()) or _has_attributes():
        yield "has changed priorities or attributes of this process"
    if _has_changed_limits():
        yield "has changed limits (ulimit)"


def _digest_random_state() -> str:
    """Return a digest of the states that a fork does not keep, because it draws new ones (`begin_process`)."""
    import hashlib

    states = []
    if "random" in sys.modules:
        states.append(sys.modules["random"].getstate())
    if "numpy.random" in sys.modules:
        states.append(sys.modules["numpy.random"].get_state(legacy=False))
    return hashlib.sha256(repr(states).encode()).hexdigest()


def _ask_fresh_interpreter() -> str:
    """Return the digest of another process of this Python. Only seeded generators have equal states there."""
    import subprocess

    folder = os.path.dirname(os.path.realpath(__file__))
    script = (
        f"import sys; sys.path.insert(0, {folder!r}); import startup; print(startup._digest_random_state())"
    )
    argv = [sys.executable, *subprocess._args_from_interpreter_flags(), "-c", script]  # type: ignore[attr-defined]
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_FRESH_S
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().rpartition("\n")[2]


def _is_traced() -> bool:
    hooks: list[Any] = [sys.gettrace(), sys.getprofile()]
    hooks += [getattr(threading, name, None) for name in ("_trace_hook", "_profile_hook")]
    monitoring: Any = getattr(sys, "monitoring", None)
    if monitoring is not None:
        hooks += [monitoring.get_tool(number) for number in range(6)]
    tracemalloc: Any = sys.modules.get("tracemalloc")
    is_wanted = "tracemalloc" in sys._xoptions or os.environ.get("PYTHONTRACEMALLOC")
    if tracemalloc is not None and not is_wanted and tracemalloc.is_tracing():
        return True
    return any(hook is not None for hook in hooks)


def _has_changed_mask() -> bool:
    """True if other signals are blocked than in the parent. The parent blocks all while it begins another process."""
    for _ in range(_MASK_LOOKS):
        if not _has_changed("SigBlk"):
            return False
        time.sleep(_MASK_LOOK_S)
    return True


def _has_changed(name: str) -> bool:
    """True if a line of /proc/PID/status is not the parent's."""
    lines = []
    for pid in ("self", os.getppid()):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
            lines += [line for line in file if line.startswith(f"{name}:")]
    return len(lines) == 2 and lines[0] != lines[1]


def _has_usual_streams() -> bool:
    """True if stdin is the empty file, and stdout and stderr go to the same file, as the agent has set them."""
    found = [os.fstat(number) for number in (0, 1, 2)]
    return os.path.samestat(found[0], os.stat(os.devnull)) and os.path.samestat(found[1], found[2])


def _read_priority(pid: int) -> tuple[int, ...]:
    return os.getpriority(os.PRIO_PROCESS, pid), os.sched_getscheduler(pid)


def _has_attributes() -> bool:
    """True if this process ends with its parent, or adopts orphans. A fork does not inherit that."""
    value = ctypes.c_int()
    for ask in (_PR_GET_PDEATHSIG, _PR_GET_CHILD_SUBREAPER):
        if ctypes.CDLL(None).prctl(ask, ctypes.byref(value), 0, 0, 0) == 0 and value.value:
            return True
    return False


def _has_changed_limits() -> bool:
    """True if a limit is not the parent's.

    The agent's own limit of open files is higher. The stack is that of the kernels, and not of the agent.
    """
    kinds = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
    for name in ("RLIMIT_NOFILE", "RLIMIT_OFILE", "RLIMIT_STACK"):
        kinds.pop(name, None)
    with contextlib.suppress(OSError):  # the parent is outside the container
        return any(
            resource.getrlimit(each) != resource.prlimit(os.getppid(), each) for each in kinds.values()
        )
    return False


def has_children() -> bool:
    """True if this process has a child, also one that has ended. No child is reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def _list_descriptors() -> list[int]:
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            os.fstat(int(name))
            found.append(int(name))
    return found


def _count_exit_handlers() -> int:
    """Return the number of exit handlers, without those of libraries, which only clean up."""
    count = atexit._ncallbacks()
    count -= "logging" in sys.modules
    count -= "multiprocessing.util" in sys.modules
    weakref: Any = sys.modules.get("weakref")
    count -= bool(weakref and weakref.finalize._registered_with_atexit)
    certifi: Any = sys.modules.get("certifi.core")  # start-up code that adds certificates asks it for a path
    return int(count - (getattr(certifi, "_CACERT_CTX", None) is not None))


def _find_changes() -> dict[str, str | None]:
    """Return the environment variables that have changed since this process was started.

    The interpreter itself may have set LC_CTYPE (PEP 538).
    """
    with open("/proc/self/environ", "rb") as file:
        pairs = (entry.partition(b"=") for entry in file.read().split(b"\0") if b"=" in entry)
        first = {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}
    return {
        name: os.environ.get(name)
        for name in first.keys() | os.environ.keys()
        if first.get(name) != os.environ.get(name)
    }
