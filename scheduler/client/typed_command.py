"""A command of `roost` for one service, as a user types it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from roost.scheduler.backends.spec import DEFAULT_BACKEND


def write_command(command: str, backend: str, options: Mapping[str, Any]) -> str:
    """Return the command line for the service of this backend with these options.

    >>> write_command("restart-service", "ray", {"address": "head:6379"})
    'roost restart-service --backend ray --backend-option address=head:6379'
    """
    words = ["roost", command]
    if backend != DEFAULT_BACKEND:
        words += ["--backend", backend]
    for name, value in options.items():
        words += [
            "--backend-option",
            f"{name}={value if isinstance(value, str) else json.dumps(value, default=str)}",
        ]
    return shlex.join(words)
