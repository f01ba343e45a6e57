"""The launchers of Gateway Provisioners and Enterprise Gateway, unchanged, in a cache outside this repository.

pip downloads them. The name of a folder in the cache holds the versions. A folder gets its name when it is complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

from roost.testing.deadlines import allow_s

PROVISIONERS = "gateway_provisioners==0.5.0"
GATEWAY = "jupyter_enterprise_gateway==3.3.0"
_LIBRARY = "pycryptodomex==3.23.0"
"""The launchers encrypt with it."""
_VERSIONS = f"{PROVISIONERS} {GATEWAY} {_LIBRARY}".replace("==", "-").replace(" ", "_")
_SCRIPT = "python/scripts/launch_ipykernel.py"
_TIMEOUT_S = 180.0
KINDS = ("provisioners", "gateway")


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "roost-tests" / "launchers"


def library() -> Path:
    """Return the folder with the libraries of the launchers, for PYTHONPATH."""
    return _cache() / _VERSIONS / "library"


def build_command(kind: str, python: str = sys.executable) -> list[str]:
    """Return the command of a kernelspec with the launcher of this kind, as its project writes it."""
    script = str(_cache() / _VERSIONS / kind / _SCRIPT)
    flag = "--RemoteProcessProxy." if kind == "gateway" else "--"
    names = ["kernel_id", "response_address", "public_key", "port_range"]
    names += ["transport_encryption"] if kind == "provisioners" else []
    places = [word for name in names for word in (flag + name.replace("_", "-"), f"{{{name}}}")]
    return [python, script, *places, f"{flag}spark-context-initialization-mode", "none"]


def why_not() -> str | None:
    """Download the launchers, if they are not in the cache. Return why they are missing, in one sentence, or None."""
    folder = _cache() / _VERSIONS
    _cache().mkdir(parents=True, exist_ok=True)
    with open(_cache() / "download.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return None
        with tempfile.TemporaryDirectory(dir=_cache(), prefix="half-done-") as fresh:
            try:
                _download(Path(fresh) / "all")
            except (OSError, subprocess.SubprocessError) as problem:
                return f"pip cannot download {PROVISIONERS} and {GATEWAY} here: {problem}"
            (Path(fresh) / "all").rename(folder)
    return None


def _download(folder: Path) -> None:
    """Put the launchers and their library into a folder. Raises `SubprocessError`."""
    _pip("install", "--target", str(folder / "library"), _LIBRARY)
    archives = folder / "archives"
    _pip("download", "--no-deps", "--dest", str(archives), PROVISIONERS)
    _pip("download", "--no-deps", "--dest", str(archives), "--no-binary", GATEWAY.partition("=")[0], GATEWAY)
    with zipfile.ZipFile(next(archives.glob("*.whl"))) as wheel:
        wheel.extractall(archives)
    with tarfile.open(next(archives.glob("*.tar.gz"))) as source:
        source.extractall(
            archives, members=[each for each in source if "/etc/kernel-launchers/" in each.name]
        )
    shutil.move(archives / "gateway_provisioners/kernel-launchers", folder / "provisioners")
    # Gateway Provisioners' own command puts the two files into one folder.
    listener = folder / "provisioners/shared/scripts/server_listener.py"
    shutil.copy(listener, folder / "provisioners/python/scripts")
    shutil.move(next(archives.glob("*/etc/kernel-launchers")), folder / "gateway")
    shutil.rmtree(archives)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=allow_s(_TIMEOUT_S))
