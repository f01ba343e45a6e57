"""The rules that decide whether a kernel may be forked from a zygote, which imported its modules some time ago.

A zygote serves only while the files that its imports have read are unchanged (`Fingerprint.broken_by`). The environment
variables that the imports have read must also have the same values (`Zygote.serves`).
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from roost.launchers.daemon.tasks import join_shared

FileStamp = tuple[int, int, int]
"""The stamp of a file: mtime in ns, size in bytes, inode."""

_READ_BY_C_CODE = (
    "PYTHON", "LD_", "OMP_", "OPENBLAS_", "GOTO_", "MKL_", "KMP_", "BLIS_", "VECLIB_", "NUMEXPR_",
    "MALLOC_", "GLIBC_", "LC_", "LANG",
)  # fmt: skip
_LAUNCHERS = ("ipykernel_launcher", "ipykernel")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCommand:
    """The parts of an ipykernel's argv: `python *flags -m ipykernel_launcher -f FILE *args`."""

    python: str
    flags: tuple[str, ...] = ()
    args: tuple[str, ...] = ()


def parse_ipykernel_command(argv: Sequence[str]) -> KernelCommand | None:
    """Split an ipykernel's argv into its parts. Return None for any other command, which cannot be forked."""
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
    """Return the path of the interpreter that a start with `env` would find. Keep links, because they name the venv."""
    found = shutil.which(python, path=env.get("PATH", os.defpath))
    return os.path.abspath(found) if found else None


def select_import_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the interpreter, the loader and C libraries read, unseen by Python code.

    HOME is one of them: the interpreter looks there for the user's packages.
    """
    return {
        name: value
        for name, value in sorted(env.items())
        if name.startswith(_READ_BY_C_CODE) or name == "HOME"
    }


def choose_import_folder(env: Mapping[str, str], cwd: str) -> str:
    """Return the folder on which imports depend: `cwd` if PYTHONPATH has relative entries, otherwise `/`."""
    entries = env["PYTHONPATH"].split(os.pathsep) if env.get("PYTHONPATH") else []
    return "/" if all(os.path.isabs(entry) for entry in entries) else cwd


def stamp(path: str) -> FileStamp | None:
    """Return the stamp of a file or folder, or None if it does not exist. A new content has a new stamp."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@dataclass(slots=True, kw_only=True)
class Fingerprint:
    """The files and folders from which a zygote imported its modules.

    `folders` are the entries of sys.path that are not site-packages. People write files into them all the time. So a
    change counts only if it adds or removes a module with a name that the zygote imported.
    """

    files: dict[str, FileStamp | None]
    folders: dict[str, FileStamp | None] = field(default_factory=dict)
    imported_names: frozenset[str] = frozenset()
    _listed: dict[str, frozenset[str]] = field(default_factory=dict)
    _check: asyncio.Task[str | None] | None = None

    def __post_init__(self) -> None:
        self._listed = {folder: self._offered(folder) for folder in self.folders}

    async def check(self) -> str | None:
        """Return the result of `broken_by`. Launches in a burst share a check; later callers wait for the next one."""

        async def run() -> str | None:
            await asyncio.sleep(0)  # let the other launches of the burst join
            self._check = None  # from here on, callers need the next check
            return self.broken_by()

        if self._check is None:
            self._check = asyncio.create_task(run())
        return await join_shared(self._check)

    def broken_by(self) -> str | None:
        """Return the first path that has changed, or None. Costs a stat for each of about 1,000 files."""
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
        try:
            return self.imported_names.intersection(name.partition(".")[0] for name in os.listdir(folder))
        except OSError:
            return frozenset()
