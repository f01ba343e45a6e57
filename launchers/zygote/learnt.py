"""Learnt preloads: packages that recent kernels have imported, so that the zygote imports them in advance.

    kernel   reports at its end which installed packages it has imported (`report_imports`)
    agent    counts the reports, and chooses packages for the next zygote
    zygote   imports them (`import_learnt`), and refuses a package that kernels would notice (`Unfit`)

A kernel also reports a package that the zygote had imported before, if the kernel has imported it too. At each import,
Python asks the module's spec whether the module is still being loaded. A watched spec notes the first question, and is
a plain spec from then on.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import importlib
import json
import locale
import logging
import os
import random
import re
import signal
import site
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import Any

from .standby import record_environment
from .startup import has_children

_IMPORT_S = 20
"""How long the import of one package may take. After that, SIGALRM ends the zygote."""
_MOST_NAMES = 200
"""At most this many packages in the report of one kernel."""
_REPEATS = "all kernels would draw the same random numbers from it"
UNFIT = {
    "cupy": _REPEATS,
    "jaxlib": "it does not survive a fork",
    "matplotlib": "it reads a configuration from the working folder",
    "tensorflow": "it does not survive a fork",
    "torch": _REPEATS,
}
"""Packages that are never learnt, with reasons that no check would find. The setting `preload` may name them."""
_SYSTEM_SIGNALS = 0b11 << 31
"""The mask of the signals 32 and 33, which the C library uses for threads."""
_used: set[str] = set()


class Unfit(Exception):
    """A learnt package must not be imported before a fork. The arguments are its name and the reason."""


class _WatchedSpec(ModuleSpec):
    """The spec of a module that the zygote has imported. It notes when a kernel imports the module, too."""

    def __getattr__(self, name: str) -> Any:
        if name != "_initializing":
            raise AttributeError(f"'ModuleSpec' object has no attribute {name!r}")
        _used.add(self.name.partition(".")[0])
        self.__class__ = ModuleSpec  # type: ignore[assignment]
        self._initializing = False
        return False


_WatchedSpec.__name__ = ModuleSpec.__name__  # its repr shows it
_WatchedSpec.__module__ = ModuleSpec.__module__


def find_sites() -> tuple[str, ...]:
    """Return the folders of sys.path into which packages of this Python are installed."""
    folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return tuple(folder for folder in folders if folder in sys.path)


def import_learnt(
    names: Iterable[str], sites: Collection[str], announce: Callable[[str, str], object]
) -> tuple[dict[str, list[str]], dict[str, str | None]]:
    """Import these packages if they are installed in `sites`. After `Unfit` is raised, this process must end.

    An import may end the process. Before each import, `announce` gets the arguments of an `Unfit` for that case. Return
    the environment variables that each package has read, and the values of all these variables.
    """
    earlier = set(sys.modules)
    real_sites = [os.path.realpath(folder) for folder in sites]
    read_by: dict[str, list[str]] = {}
    reads: dict[str, str | None] = {}
    for name in names:
        origin = _find_origin(name)
        if name in UNFIT or origin is None or not _is_inside(os.path.realpath(origin), real_sites):
            continue
        announce(name, f"its import ends the process, or takes longer than {_IMPORT_S} s")
        seen: dict[str, str | None] = {}
        _import_one(name, seen)
        read_by[name] = sorted(seen)
        for variable, value in seen.items():
            reads.setdefault(variable, value)
    _watch(module for name, module in list(sys.modules.items()) if name not in earlier)
    return read_by, reads


def report_imports(path: str, python: str, known: Collection[str], sites: Collection[str]) -> None:
    """Write to the new file `path` which packages of `sites` this kernel has imported.

    `python` is the agent's name for this Python. Modules that are `known` by name are the zygote's. A learnt
    package counts only if this kernel has imported it itself.
    """
    with contextlib.suppress(Exception):  # a kernel may put anything into sys.modules
        tops = {name.partition(".")[0] for name in list(sys.modules) if name not in known} - set(known)
        names = _used | {
            name for name in tops if not name.startswith("_") and _is_installed(sys.modules.get(name), sites)
        }
        report = {"python": python, "sites": list(sites), "names": sorted(names)[:_MOST_NAMES]}
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            json.dump(report, file)


def _find_origin(name: str) -> str | None:
    """Return the file of a package that is not imported yet. None if there is none, as for a namespace package."""
    with contextlib.suppress(ImportError, ValueError):
        spec = find_spec(name) if name not in sys.modules else None
        return spec.origin if spec is not None and spec.has_location else None
    return None


def _is_installed(module: object, sites: Collection[str]) -> bool:
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    return isinstance(origin, str) and _is_inside(origin, sites)


def _is_inside(path: str, folders: Iterable[str]) -> bool:
    return path.startswith(tuple(os.path.join(folder, "") for folder in folders))


def _import_one(name: str, reads: dict[str, str | None]) -> None:
    pid, before, had = os.getpid(), _describe_process(), UNFIT.keys() & sys.modules.keys()
    try:
        signal.alarm(_IMPORT_S)
        with _count_output() as printed, record_environment(reads):
            importlib.import_module(name)
    except BaseException as error:  # noqa: BLE001 - whatever an import may raise
        raise Unfit(name, f"its import raises {type(error).__name__}") from None
    finally:
        if os.getpid() != pid:  # a copy, which the package has forked
            os._exit(0)
        signal.alarm(0)
    for imported in sorted(UNFIT.keys() & sys.modules.keys() - had):
        raise Unfit(name, f"it imports {imported}: {UNFIT[imported]}")
    if printed:
        raise Unfit(name, "it prints something")
    for reason, value in _describe_process().items():
        if value != before[reason]:
            raise Unfit(name, reason)


@contextlib.contextmanager
def _count_output() -> Iterator[list[int]]:
    """Yield a list that gets the number of bytes if anything is written to the standard streams."""
    printed: list[int] = []
    with open(os.memfd_create("output"), "rb") as file:
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield printed
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    stream.flush()
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            if length := os.fstat(file.fileno()).st_size:
                printed.append(length)


def _describe_process() -> dict[str, Any]:
    """Return the state that kernels inherit.

    Each key is a clause that describes an import that changes the value.
    """
    child = os.fork()  # libraries that survive a fork may end their threads here
    if child == 0:
        os._exit(0)
    with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored now
        os.waitpid(child, 0)
    with open("/proc/self/status") as file:
        status = {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    masks = [int(status[name], 16) & ~_SYSTEM_SIGNALS for name in ("SigBlk", "SigIgn", "SigCgt")]
    umask = os.umask(0o77)
    os.umask(umask)
    return {
        "it starts a thread": (status["Threads"], threading.active_count()),
        "it starts a process": has_children(),
        "it opens a file, a connection or a device": _list_descriptors(),
        "it handles signals": (masks, [signal.getsignal(number) for number in range(1, 32)]),
        "it changes the environment": dict(os.environ),
        "it changes sys.path": list(sys.path),
        "it changes the working folder or the umask": (os.getcwd(), umask),
        "it changes the locale": locale.setlocale(locale.LC_ALL),
        "it replaces a hook or a stream of Python": [
            *(sys.excepthook, sys.displayhook, builtins.__import__, sys.stdin, sys.stdout, sys.stderr)
        ],
        "it changes a limit of Python": (
            sys.getrecursionlimit(),
            sys.getswitchinterval(),
            gc.get_threshold(),
        ),
        "it changes the root logger": (logging.root.level, list(logging.root.handlers)),
        "it changes which warnings are shown": list(filter(_is_general, warnings.filters)),
        _REPEATS: _count_generators(),
    }


def _is_general(warning_filter: Sequence[Any]) -> bool:
    """True if the filter can affect the user's code: any message, any code, a built-in category."""
    _, message, category, module, _ = warning_filter
    is_for_all = module is None or re.match(module, "__main__") is not None
    return message is None and is_for_all and category.__module__ == "builtins"


def _list_descriptors() -> dict[str, str]:
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the list itself
            found[number] = os.readlink(f"/proc/self/fd/{number}")
    return found


def _count_generators() -> int:
    """Return the number of random generators that are not seeded again after a fork."""
    kinds: set[type] = set()
    fresh: list[type] = [random.Random]
    while fresh:
        kind = fresh.pop()
        if kind is not random.SystemRandom:
            kinds.add(kind)
            fresh += kind.__subclasses__()
    numpy_random: Any = sys.modules.get("numpy.random")
    if numpy_random is not None:
        kinds |= {numpy_random.Generator, numpy_random.RandomState}
    seeded = getattr(sys.modules.get("numpy.random.mtrand"), "_rand", None)
    return sum(type(each) in kinds and each is not seeded for each in gc.get_objects())


def _watch(modules: Iterable[object]) -> None:
    for module in modules:
        spec = getattr(module, "__spec__", None)
        if type(spec) is ModuleSpec and "_initializing" in vars(spec):
            del spec._initializing  # type: ignore[attr-defined]
            spec.__class__ = _WatchedSpec
