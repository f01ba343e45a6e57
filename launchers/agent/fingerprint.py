"""The rules that say whether a kernel may be forked from a zygote.

A zygote imported its modules some time ago, in some environment. Before it forks a kernel, two questions are asked:
- Would a fresh interpreter read the same environment during its imports? `select_import_environment` has the part
  that every interpreter reads; the zygote reports the names that its own imports read.
- Would a fresh interpreter read the same files? See `Fingerprint.broken_by`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

FileStamp = tuple[int, int, int]
"""mtime in ns, size in bytes, inode."""

_READ_BY_C_CODE = (
    "PYTHON", "LD_", "OMP_", "OPENBLAS_", "GOTO_", "MKL_", "KMP_", "BLIS_", "VECLIB_", "NUMEXPR_",
    "MALLOC_", "GLIBC_", "LC_", "LANG",
)  # fmt: skip
_LAUNCHERS = ("ipykernel_launcher", "ipykernel")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCommand:
    """An ipykernel's argv, taken apart: ``python *flags -m ipykernel_launcher -f FILE *args``."""

    python: str
    flags: tuple[str, ...] = ()
    args: tuple[str, ...] = ()


def parse_ipykernel_command(argv: Sequence[str]) -> KernelCommand | None:
    """Take an ipykernel's argv apart; None for every other command, which can then only be exec'ed."""
    if len(argv) < 4:
        return None
    flags: list[str] = []
    rest = list(argv[1:])
    while rest and rest[0].startswith("-") and rest[0] != "-m":
        flag = rest.pop(0)
        if flag.startswith(("-c", "-h", "-i", "-V", "-v", "--")) or flag == "-":
            return None
        flags.append(flag)
        if flag in ("-X", "-W"):
            flags.append(rest.pop(0) if rest else "")
    if rest[:1] == ["-m"]:
        rest.pop(0)
        if not rest or rest[0] not in _LAUNCHERS:
            return None
    elif not rest or os.path.basename(rest[0]) != "ipykernel_launcher.py":
        return None
    args = rest[1:]
    if args.count("-f") != 1 or args[-1] == "-f":
        return None
    at = args.index("-f")
    return KernelCommand(python=argv[0], flags=tuple(flags), args=(*args[:at], *args[at + 2 :]))


def resolve_python(python: str, env: Mapping[str, str]) -> str | None:
    """Path of the interpreter as a start with `env` would find it; links are kept, since they name the venv."""
    found = shutil.which(python, path=env.get("PATH", os.defpath))
    return os.path.abspath(found) if found else None


def select_import_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The part of `env` that the interpreter, the loader and C libraries read before Python code could see it."""
    return {name: value for name, value in sorted(env.items()) if name.startswith(_READ_BY_C_CODE)}


def choose_import_folder(env: Mapping[str, str], cwd: str) -> str:
    """The working directory as far as imports depend on it: `cwd` if PYTHONPATH has relative entries, else ``/``."""
    entries = env["PYTHONPATH"].split(os.pathsep) if env.get("PYTHONPATH") else []
    return "/" if all(os.path.isabs(entry) for entry in entries) else cwd


def stamp(path: str) -> FileStamp | None:
    """What identifies the content of a file or folder without reading it; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@dataclass(slots=True, kw_only=True)
class Fingerprint:
    """Files and folders that a zygote's imports came from.

    `folders` are the entries of sys.path that are not site-packages, with what they held: people write
    files into them all the time, so that a changed one counts only if it now offers a module of a name that was
    imported from further down the path.
    """

    files: dict[str, FileStamp | None]
    folders: dict[str, FileStamp | None] = field(default_factory=dict)
    imported_names: frozenset[str] = frozenset()
    _listed: dict[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._listed = {folder: self._offered(folder) for folder in self.folders}

    def broken_by(self) -> str | None:
        """The first path that is not what it was, or None; a stat for each of ~1,000 files."""
        stat = os.stat
        try:
            for path, known in self.files.items():
                status = stat(path)
                if (status.st_mtime_ns, status.st_size, status.st_ino) != known:
                    return path
        except OSError:
            if known is not None:
                return path
        for folder, known in self.folders.items():
            now = stamp(folder)
            if now != known:
                if self._offered(folder) != self._listed[folder]:
                    return folder
                self.folders[folder] = now
        return None

    def _offered(self, folder: str) -> frozenset[str]:
        """Names in `folder` that would shadow, or have been, an imported top-level module."""
        return self.imported_names.intersection(_module_names(folder))


def _module_names(folder: str) -> Iterable[str]:
    try:
        return {name.partition(".")[0] for name in os.listdir(folder)}
    except OSError:
        return ()
