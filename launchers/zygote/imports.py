"""The files and environment variables on which a zygote's imports depended."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def record_environment(reads: set[str]) -> Iterator[None]:
    """Add to `reads` the name of each variable that is looked up in os.environ."""
    plain = type(os.environ)

    class Recording(plain):  # type: ignore[valid-type, misc]
        def __getitem__(self, name: str) -> str:
            if isinstance(name, str):
                reads.add(name)
            return str(super().__getitem__(name))

    os.environ.__class__ = Recording
    try:
        yield
    finally:
        os.environ.__class__ = plain


def take_fingerprint() -> dict[str, Any]:
    """Return the paths that a fresh interpreter would read for the same imports, with their stamps.

    The agent makes a `Fingerprint` of them. Folders stand for the files of the standard library, which is only ever
    replaced as a whole. This halves the number of stats.
    """
    library = os.path.dirname(os.__file__) + os.sep
    sites = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    paths = {sys.executable, os.path.join(sys.prefix, "pyvenv.cfg"), *sites}
    for site in sites:
        with contextlib.suppress(OSError):
            paths.update(os.path.join(site, name) for name in os.listdir(site) if name.endswith(".pth"))
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        if path:
            is_library = path.startswith(library) and not path.startswith(tuple(sites))
            paths.add(os.path.dirname(path) if is_library else path)
    # Shared libraries that are mapped as code.
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        paths.update(line.split(maxsplit=5)[5].strip() for line in maps if " r-xp " in line and "/" in line)
    return {
        "files": [[path, *stamp(path)] for path in sorted(paths) if stamp(path)],
        "folders": [[path, *stamp(path)] for path in sys.path if path not in paths and stamp(path)],
        "names": sorted({name.partition(".")[0] for name in sys.modules}),
    }


def stamp(path: str) -> tuple[int, ...]:
    """Return modification time in ns, size and inode, or an empty tuple if there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
