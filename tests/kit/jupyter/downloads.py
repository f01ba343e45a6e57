"""Downloads by pip for tests, in a cache outside this repository. A folder gets its name when it is complete."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from roost.testing.deadlines import allow_s

PROVISIONERS = "gateway_provisioners==0.5.0"
GATEWAY = "jupyter_enterprise_gateway==3.3.0"
_TIMEOUT_S = 400.0


def cache() -> Path:
    """Return the folder of all downloads of the old gateways."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "roost-tests" / "launchers"


def keep(name: str, fill: Callable[[Path], None]) -> str | None:
    """Let `fill` make a folder of the cache, if it is not there. Return why it is missing, in one sentence, or None."""
    folder = cache() / name
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / "download.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return None
        with tempfile.TemporaryDirectory(dir=cache(), prefix="half-done-") as fresh:
            try:
                fill(Path(fresh) / "all")
            except (OSError, subprocess.SubprocessError) as problem:
                return f"pip cannot make {name} here: {problem}"
            (Path(fresh) / "all").rename(folder)
    return None


def pip(*arguments: str, python: str = sys.executable) -> None:
    """Run pip. Raises `SubprocessError`."""
    command = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=allow_s(_TIMEOUT_S))


def download_gateway(folder: Path, parts: tuple[str, ...]) -> Path:
    """Put these folders of Enterprise Gateway's source below a folder. Return the source's folder.

    Raises `OSError` and `SubprocessError`.
    """
    pip("download", "--no-deps", "--dest", str(folder), "--no-binary", GATEWAY.partition("=")[0], GATEWAY)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as source:
        members = [each for each in source if each.name.partition("/")[2].startswith(parts)]
        source.extractall(folder, members=members)
    return next(each for each in folder.glob("jupyter_enterprise_gateway*") if each.is_dir())
