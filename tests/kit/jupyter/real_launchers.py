"""The launchers of Gateway Provisioners and Enterprise Gateway, unchanged, in a cache outside this repository.

pip downloads them. The name of a folder in the cache holds the versions.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

from kit.jupyter.downloads import GATEWAY, PROVISIONERS, cache, download_gateway, keep, pip

_LIBRARY = "pycryptodomex==3.23.0"
"""The launchers encrypt with it."""
_VERSIONS = f"{PROVISIONERS} {GATEWAY} {_LIBRARY}".replace("==", "-").replace(" ", "_")
_SCRIPT = "python/scripts/launch_ipykernel.py"
KINDS = ("provisioners", "gateway")


def library() -> Path:
    """Return the folder with the libraries of the launchers, for PYTHONPATH."""
    return cache() / _VERSIONS / "library"


def build_command(kind: str, python: str = sys.executable) -> list[str]:
    """Return the command of a kernelspec with the launcher of this kind, as its project writes it."""
    script = str(cache() / _VERSIONS / kind / _SCRIPT)
    flag = "--RemoteProcessProxy." if kind == "gateway" else "--"
    names = ["kernel_id", "response_address", "public_key", "port_range"]
    names += ["transport_encryption"] if kind == "provisioners" else []
    places = [word for name in names for word in (flag + name.replace("_", "-"), f"{{{name}}}")]
    return [python, script, *places, f"{flag}spark-context-initialization-mode", "none"]


def why_not() -> str | None:
    """Download the launchers, if they are not in the cache. Return why they are missing, in one sentence, or None."""
    return keep(_VERSIONS, _download)


def _download(folder: Path) -> None:
    """Put the launchers and their library into a folder. Raises `SubprocessError`."""
    pip("install", "--target", str(folder / "library"), _LIBRARY)
    archives = folder / "archives"
    pip("download", "--no-deps", "--dest", str(archives), PROVISIONERS)
    with zipfile.ZipFile(next(archives.glob("*.whl"))) as wheel:
        wheel.extractall(archives)
    source = download_gateway(archives, ("etc/kernel-launchers/",))
    shutil.move(archives / "gateway_provisioners/kernel-launchers", folder / "provisioners")
    # Gateway Provisioners' own command puts the two files into one folder.
    listener = folder / "provisioners/shared/scripts/server_listener.py"
    shutil.copy(listener, folder / "provisioners/python/scripts")
    shutil.move(source / "etc/kernel-launchers", folder / "gateway")
    shutil.rmtree(archives)
