"""The rules that decide whether a kernel may be forked from a zygote, which imported its modules some time ago.

A zygote serves only while the files that its imports have read are unchanged (`Fingerprint.broken_by`). The environment
variables that the imports have read must also have the same values (`Zygote.serves`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from roost.launchers.daemon.tasks import join_shared

from .folder_watch import FolderWatch, find_local

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


def identify(folder: str) -> tuple[int, int] | None:
    """Return the device and the inode that a path leads to, or None if it does not exist."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@dataclass(slots=True, kw_only=True)
class Fingerprint:
    """The files and folders from which a zygote imported its modules."""

    files: dict[str, FileStamp | None]
    folders: dict[str, FileStamp | None] = field(default_factory=dict)
    """The entries of sys.path that are not site-packages. People write files into them all the time.

    So a change counts only if it adds or removes a module with a name that the zygote imported.
    """
    imported_names: frozenset[str] = frozenset()
    """The names of the modules that the zygote imported."""
    watch: FolderWatch | None = None
    """If given, the folders of `files` are watched, until `close` is called."""
    _listed: dict[str, frozenset[str]] = field(default_factory=dict)
    _check: asyncio.Task[str | None] | None = None
    _unwatched: dict[str, FileStamp | None] = field(default_factory=dict)
    _watched_folders: set[str] = field(default_factory=set)
    _watched_files: set[str] = field(default_factory=set)
    _roots: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    _watches: list[int] | None = None
    _changes: int = -1

    def __post_init__(self) -> None:
        self._listed = {folder: self._offered(folder) for folder in self.folders}
        if self.watch is not None:
            self._choose_watched()

    def close(self) -> None:
        """Give up the watches. From then on, each check looks at all files."""
        if self.watch is not None:
            self.watch.remove(self._watches or ())
            self.watch = None

    def _choose_watched(self) -> None:
        """Choose the folders to watch: those of regular files on local file systems.

        A watched folder reports what becomes of its files and folders. Links, folders, files on other file systems and
        `_roots` are looked at in each check. A root is a watched folder whose own place no watched folder reports. The
        files are watched too: their folders do not report a change by another name of the file (a hard link).
        """
        by_folder: dict[str, list[str]] = {}
        for path in self.files:
            with contextlib.suppress(OSError):
                if stat.S_ISREG(os.lstat(path).st_mode):
                    by_folder.setdefault(os.path.dirname(path), []).append(path)
        self._watched_folders = find_local(by_folder)
        self._watched_files = {path for folder in self._watched_folders for path in by_folder[folder]}
        self._unwatched = {
            path: known for path, known in self.files.items() if path not in self._watched_files
        }

    def _is_quiet(self) -> bool:
        """True if no watched folder has reported a change since the files were last looked at."""
        if self.watch is None or self._watches is None or self.watch.read() != self._changes:
            return False
        return all(identify(folder) == known for folder, known in self._roots.items())

    def _watch_again(self) -> None:
        """Begin to watch, before a look at all files. A folder that was replaced needs another watch."""
        if self.watch is None:
            return
        earlier = self._watches
        self._watches = self.watch.add([*self._watched_folders, *self._watched_files])
        self.watch.remove(earlier or ())
        self._changes = self.watch.read()
        self._roots = {
            folder: identify(folder)
            for folder in self._watched_folders
            if os.path.dirname(folder) not in self._watched_folders or os.path.islink(folder)
        }

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
        """Return the first path that has changed, or None.

        This costs a stat for each of about 1,000 files, unless they are watched and report nothing.
        """
        if self._is_quiet():
            return self._find_changed(self._unwatched)
        self._watch_again()
        return self.look_at_all()

    def look_at_all(self) -> str | None:
        """Return the first path that has changed, or None. Look at all files, whatever the watch has reported."""
        return self._find_changed(self.files)

    def _find_changed(self, files: Mapping[str, FileStamp | None]) -> str | None:
        look = os.stat
        try:
            for path, known in files.items():
                status = look(path)
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
