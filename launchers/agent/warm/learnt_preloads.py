"""The preloads that an agent learns: packages that most recent kernels of a Python have imported.

A forked kernel that ends by itself reports its imports in a file in its folder (`zygote/learnt.py`). The agent keeps
the latest reports of each Python in a file of its own, for the agents after it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from roost.launchers.daemon.file_input import read_document, take_json
from roost.launchers.daemon.private_files import is_own_file, write_private_json
from roost.placement.model.json_codec import WireError, decode, encode

from .fingerprint import FileStamp, stamp

log = logging.getLogger(__name__)

RECENT = 20
"""How many of the latest kernels of a Python count."""
FEWEST = 5
"""With reports of fewer kernels than this, no learnt package is preloaded."""
_MOST_PRELOADS = 50
_MOST_REPORT_BYTES = 64 << 10
_MOST_NAMES, _MOST_LETTERS = 200, 64
"""At most this many packages of a report count, and only names with at most this many letters."""
_MOST_PYTHONS = 50
"""At most this many Pythons have a file of reports. The oldest file is removed first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The report of one kernel. `sites` are the folders into which packages of its Python are installed."""

    python: str
    sites: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """The packages that the latest kernels of one Python have imported, the latest kernel last.

    `sites` are the folders into which packages of this Python are installed. `unfit` has the packages that no zygote
    may import, with the reasons. It is valid until one of these folders changes.
    """

    python: str
    sites: tuple[str, ...] = ()
    recent: tuple[tuple[str, ...], ...] = ()
    unfit: dict[str, str] = field(default_factory=dict)
    version: tuple[FileStamp | None, ...] = ()

    def add(self, report: Report) -> Habits:
        """Return these habits with one more kernel."""
        names = [name for name in report.names if name.isidentifier() and len(name) <= _MOST_LETTERS]
        recent = (*self.recent, tuple(names[:_MOST_NAMES]))[-RECENT:]
        return replace(self, sites=report.sites, recent=recent)

    def drop(self, name: str, reason: str) -> Habits:
        """Return these habits with one more unfit package, for the version that is installed now."""
        version = self._read_version()
        known = self.unfit if version == self.version else {}
        return replace(self, unfit={**known, name: reason}, version=version)

    def choose(self) -> dict[str, int]:
        """Return the packages to preload, the most used first, with the number of kernels that imported them.

        They are packages that at least half of the kernels imported, and that are not unfit. The result is
        empty after fewer than `FEWEST` kernels.
        """
        if len(self.recent) < FEWEST:
            return {}
        unfit = self.unfit if self.unfit and self._read_version() == self.version else {}
        counts: dict[str, int] = {}
        for names in self.recent:
            for name in set(names) - unfit.keys():
                counts[name] = counts.get(name, 0) + 1
        usual = {name: count for name, count in counts.items() if 2 * count >= len(self.recent)}
        return dict(sorted(usual.items(), key=lambda item: (-item[1], item[0]))[:_MOST_PRELOADS])

    def _read_version(self) -> tuple[FileStamp | None, ...]:
        return tuple(map(stamp, self.sites))


class LearntPreloads:
    """For each Python interpreter, the packages that its recent kernels imported, kept in a file in `folder`.

    If a file cannot be written, this is only logged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._habits: dict[str, Habits] = {}

    def record(self, report: Path) -> str:
        """Count the report of a kernel that has ended, and remove its file.

        Return the kernel's Python; empty if there is no valid report.
        """
        try:
            if not is_own_file(report):
                return ""
            found = decode(Report, read_document(report, most_bytes=_MOST_REPORT_BYTES))
        except (OSError, ValueError) as problem:
            log.info("the report %s is ignored: %s", report, problem)
            return ""
        finally:
            with contextlib.suppress(OSError):
                report.unlink()
        self._keep(self._read(found.python).add(found))
        return found.python

    def choose(self, python: str) -> dict[str, int]:
        """Return the packages to preload, as `Habits.choose`."""
        return self._read(python).choose()

    def describe(self, python: str, names: tuple[str, ...]) -> str:
        """Return a text for the log: each package in `names`, with how many of the latest kernels imported it."""
        chosen, of = self.choose(python), len(self._read(python).recent)
        return ", ".join(f"{name} ({chosen.get(name, 0)} of {of} kernels)" for name in names)

    def drop(self, python: str, name: str, reason: str) -> None:
        """Never preload this package again for this version of the Python's packages."""
        log.info("%s is not preloaded for %s: %s", name, python, reason)
        self._keep(self._read(python).drop(name, reason))

    def _read(self, python: str) -> Habits:
        if python not in self._habits:
            try:
                found = decode(Habits, take_json(self._file(python), log))
            except (OSError, WireError):  # there is none, or it is of another version of roost
                found = Habits(python=python)
            self._habits[python] = found if found.python == python else Habits(python=python)
        return self._habits[python]

    def _keep(self, habits: Habits) -> None:
        self._habits[habits.python] = habits
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            write_private_json(self._file(habits.python), encode(habits))
            files = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
            for file in files[:-_MOST_PYTHONS]:
                file.unlink(missing_ok=True)
        except OSError as problem:
            log.warning("learnt preloads of %s cannot be written: %s", habits.python, problem)
        for python in list(self._habits)[:-_MOST_PYTHONS]:
            del self._habits[python]

    def _file(self, python: str) -> Path:
        return self._folder / f"{hashlib.sha256(os.fsencode(python)).hexdigest()[:32]}.json"
