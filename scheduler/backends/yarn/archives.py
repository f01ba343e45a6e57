"""The Python of containers: a path on the nodes, or an archive that YARN copies to them and unpacks."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

from roost.launchers.daemon.tasks import in_thread
from roost.placement import Request
from roost.scheduler.errors import ConfigError, LaunchError

from .master.messages import Unpacked
from .rest import Rest, reading
from .settings import RoostYarnBackend

_FOLDER = "environment"
"""The folder of the archive, in the working directory of the container."""
_IN_ARCHIVE = "bin/python"
_KNOWN_S = 10.0
"""How long the size and the time of an archive are taken as known."""


def find_archive(options: Mapping[str, object], settings: RoostYarnBackend) -> str:
    """Return the URL of a kernel's archive; empty if its Python is on the nodes. Raises `ConfigError`."""
    url = str(options.get("archive") or settings.archive)
    scheme, path = urlsplit(url).scheme, urlsplit(url).path
    if url and (scheme not in ("file", "webhdfs", "swebhdfs") or not path.startswith("/")):
        raise ConfigError(
            f"archive = {url!r:.200} must be webhdfs://namenode:9870/path, or file:///path on a disk of all nodes."
        )
    if url and not path.endswith((".tar.gz", ".tgz", ".tar", ".zip")):
        raise ConfigError(
            f"archive = {url!r:.200} must end with .tar.gz, .tgz, .tar or .zip: YARN unpacks it."
        )
    return url


def find_python(request: Request, settings: RoostYarnBackend) -> str:
    """Return the Python that runs the agent of a request. Raises `ConfigError`.

    A path that is not absolute is one in the archive, if there is one. YARN gives the command to a shell, so only plain
    characters are accepted.
    """
    asked = str(request.options.get("python", ""))
    if not all(character.isalnum() or character in "/._-+" for character in asked + settings.python):
        raise ConfigError(
            f"python = {asked or settings.python!r:.80} must be a path of letters, digits and the characters / . _ - +."
        )
    if find_archive(request.options, settings) and not asked.startswith("/"):
        return f"{_FOLDER}/{asked or _IN_ARCHIVE}"
    return asked or settings.python


class Archives:
    """Looks up the size and the time of archives, which YARN compares before it copies them."""

    def __init__(self, rest: Rest, settings: RoostYarnBackend) -> None:
        self._rest, self._settings = rest, settings
        self._known: dict[str, tuple[float, Unpacked]] = {}

    async def find(self, request: Request) -> tuple[Unpacked, ...]:
        """Return the archive of a request as a tuple; empty if the request has none.

        Raises `ConfigError` and `LaunchError`.
        """
        url = find_archive(request.options, self._settings)
        if not url:
            return ()
        at, known = self._known.get(url, (0.0, None))
        if known is None or time.monotonic() - at > _KNOWN_S:
            known = await self._look_up(url)
            self._known[url] = time.monotonic(), known
        return (known,)

    async def _look_up(self, url: str) -> Unpacked:
        parts = urlsplit(url)
        if parts.scheme == "file":
            try:
                status = await in_thread(lambda: os.stat(parts.path), name="roost-yarn")
            except OSError as problem:
                raise LaunchError(f"the archive {url} cannot be read here: {problem.strerror}.") from None
            return Unpacked(
                name=_FOLDER, url=url, size_bytes=status.st_size, modified_ms=status.st_mtime_ns // 1_000_000
            )
        scheme = "https" if parts.scheme == "swebhdfs" else "http"
        answer = await self._rest.get(f"{scheme}://{parts.netloc}/webhdfs/v1{parts.path}", op="GETFILESTATUS")
        status_of = answer.get("FileStatus")
        if status_of is None:
            raise LaunchError(f"HDFS has no archive {url}.")
        with reading(parts.netloc):
            size_bytes, modified_ms = int(status_of["length"]), int(status_of["modificationTime"])
        return Unpacked(name=_FOLDER, url=url, size_bytes=size_bytes, modified_ms=modified_ms)
