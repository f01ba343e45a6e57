"""Tells `roost doctor` which Jupyter Servers are older than a file of their configuration that names roost."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from jupyter_core.paths import jupyter_config_path, jupyter_runtime_dir

from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import UnfitFile, read_document, read_input
from roost.scheduler.messages import Finding

_NAMES = ("jupyter_config", "jupyter_server_config", "jupyter_notebook_config", "jupyter_lab_config")
_MOST_BYTES = 1 << 20


def find_problems() -> list[Finding]:
    """Return a warning for each running server of this user and each such file.

    A server reads its configuration when it starts. A file that has gone, or that has an old time, is not noticed.
    """
    found: list[Finding] = []
    files = sorted(_find_files())
    for url, started_at, reads_environment in _find_servers() if files else ():
        for written_at, file in files:
            if written_at > started_at and (reads_environment or not file.is_relative_to(sys.prefix)):
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(written_at))
                what = f"{file} has changed ({when}), and the Jupyter Server {url} has its earlier settings"
                do = "start that server again: kernels that it keeps live on"
                found.append({"level": "warning", "what": what, "do": do})
    return found


def _find_files() -> Iterator[tuple[float, Path]]:
    """Yield the files of Jupyter's configuration that name roost, with the times when they were written."""
    for folder in map(Path, jupyter_config_path()):
        candidates = [folder / f"{name}{ending}" for name in _NAMES for ending in (".py", ".json")]
        for file in (*candidates, *folder.glob("*_config.d/*.json")):
            try:
                if b"roost" in read_input(file, most_bytes=_MOST_BYTES).lower():
                    yield file.stat().st_mtime, file
            except (OSError, ConfigError):
                continue  # Jupyter does not read it either


def _find_servers() -> Iterator[tuple[str, float, bool]]:
    """Yield the address of each running server, when it started, and if it reads the files of this environment."""
    for file in sorted(Path(jupyter_runtime_dir()).glob("jpserver-*.json")):
        try:
            noted = read_document(file)
            pid, url = int(noted["pid"]), str(noted["url"])
            process = psutil.Process(pid)
            started_at, command = process.create_time(), process.cmdline()
        except (OSError, UnfitFile, KeyError, TypeError, ValueError, psutil.Error):
            continue
        if started_at <= file.stat().st_mtime + 1:  # else another process has its pid by now
            yield url, started_at, any(Path(word).is_relative_to(sys.prefix) for word in command[:2])
