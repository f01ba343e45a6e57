"""What a zygote's imports depended on: the environment that was read, and the files."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def recorded_environment(reads: set[str]) -> Iterator[None]:
    """Note in `reads` every name that is looked up in os.environ."""
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


def fingerprint() -> dict[str, Any]:
    """What a fresh interpreter would read in order to import the same, with its stamps; see the agent's `Fingerprint`.

    Of the standard library the folders stand for their files (half as many stats): it is replaced as a whole.
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
    with contextlib.suppress(OSError), open("/proc/self/maps") as maps:
        paths.update(line.split(maxsplit=5)[5].strip() for line in maps if " r-xp " in line and "/" in line)
    return {
        "files": [[path, *stamp(path)] for path in sorted(paths) if stamp(path)],
        "folders": [[path, *stamp(path)] for path in sys.path if path not in paths and stamp(path)],
        "names": sorted({name.partition(".")[0] for name in sys.modules}),
    }


def stamp(path: str) -> tuple[int, ...]:
    """Modification time in ns, size and inode; nothing when there is no such file."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino
