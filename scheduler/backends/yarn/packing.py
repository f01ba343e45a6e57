"""Packs the code of the application master as one zip archive, which is sent in the credentials of its submission."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import roost
from roost.placement.model.json_codec import encode

from .master.messages import SETTINGS_ENTRY, MasterSettings

_MODULES = (
    "__init__.py",
    "launchers/__init__.py",
    "launchers/daemon/__init__.py",
    "launchers/daemon/open_files.py",
    "launchers/daemon/supervision.py",
    "launchers/daemon/tasks.py",
    "launchers/protocol/__init__.py",
    "launchers/protocol/process_log.py",
    "launchers/protocol/rpc.py",
    "launchers/protocol/rpc_server.py",
    "launchers/protocol/shared_values.py",
    "launchers/protocol/start_archive.py",
    "launchers/protocol/unfinished_handshakes.py",
    "placement/model/json_codec.py",
)
_EMPTY = ("placement", "placement/model", "scheduler", "scheduler/backends", "scheduler/backends/yarn")
"""The packages that have a module or folder for the master. In the archive their `__init__.py` is empty."""
_MASTER = "scheduler/backends/yarn/master"
_PROGRAM = f"""\
from roost.{_MASTER.replace("/", ".")}.main import main
main()
"""


def pack_master(settings: MasterSettings) -> bytes:
    """Return an archive that Python can run. It has the master's keys, so only the master's user may read it."""
    root = Path(roost.__file__).parent
    sources = (*(root / name for name in _MODULES), *sorted((root / _MASTER).glob("*.py")))
    files = {f"roost/{path.relative_to(root)}": path.read_bytes() for path in sources}
    files |= {f"roost/{package}/__init__.py": b"" for package in _EMPTY}
    files |= {"__main__.py": _PROGRAM.encode(), SETTINGS_ENTRY: json.dumps(encode(settings)).encode()}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)  # without dates
    return content.getvalue()
