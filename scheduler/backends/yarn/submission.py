"""The submission of roost's application master: its code, its keys and its place in the queues."""

from __future__ import annotations

import base64
from typing import Any

from roost.placement import Request

from .archives import find_python
from .master.messages import CODE_ALIAS, MasterSettings, Unpacked
from .packing import pack_master
from .settings import RoostYarnBackend

NAME = "roost"
TAG = "roost"
"""The tag of every application of roost. YARN's tags are lower case."""
_MOST_FAILURES = 10
"""How often the master may fail within `_FAILURES_COUNT_MS`. YARN has a limit of its own, too."""
_FAILURES_COUNT_MS = 60_000
"""Failures of the master that are older than this do not count."""


def build_context(
    application_id: str,
    settings: RoostYarnBackend,
    master: MasterSettings,
    *,
    tags: tuple[str, ...],
    queue: str,
    priority: int | None,
    keeps_containers: bool,
    unpacked: tuple[Unpacked, ...] = (),
) -> dict[str, Any]:
    """Return the submission of a master, for the REST API.

    The credentials hold the archive with the master's code. The NodeManager writes them to a private file, which Python
    then runs. YARN keeps a submission of 1 MB at most in ZooKeeper; the archive has 60 KB. A failed attempt reports the
    end of its file `stderr`.
    """
    python = find_python(Request(), settings)
    command = f'exec {python} "$HADOOP_TOKEN_FILE_LOCATION" 1><LOG_DIR>/stdout 2><LOG_DIR>/stderr'
    code = base64.b64encode(pack_master(master)).decode()
    context: dict[str, Any] = {
        "application-id": application_id,
        "application-name": NAME,
        "application-type": NAME,
        "application-tags": {"tag": [TAG, *tags]},
        "queue": queue,
        "max-app-attempts": _MOST_FAILURES,
        "attempt-failures-validity-interval": _FAILURES_COUNT_MS,
        "keep-containers-across-application-attempts": keeps_containers,
        "resource": {"memory": settings.master_memory >> 20, "vCores": 1},
        "am-container-spec": {
            "commands": {"command": command},
            "local-resources": {"entry": [_describe(archive) for archive in unpacked]},
            "environment": {"entry": [{"key": "PYTHONDONTWRITEBYTECODE", "value": "1"}]},
            "credentials": {"tokens": {}, "secrets": {"entry": [{"key": CODE_ALIAS, "value": code}]}},
        },
    }
    if priority is not None:
        context["priority"] = priority
    return context


def _describe(archive: Unpacked) -> dict[str, Any]:
    return {
        "key": archive.name,
        "value": {
            "resource": archive.url,
            "type": "ARCHIVE",
            "visibility": "PRIVATE",
            "size": archive.size_bytes,
            "timestamp": archive.modified_ms,
        },
    }
