"""The name of the interpreter: `python` and `python3` of one folder may be one file, and then share a zygote."""

from __future__ import annotations

import contextlib
import os
import sys
from types import ModuleType
from typing import Any

_COMM_BYTES = 15
"""The length of a name in /proc/PID/comm."""


class InterpreterName:
    """The places where this process has its interpreter's path: `sys.executable`, and what modules have made of it."""

    def __init__(self) -> None:
        paths = sys.executable, os.fsencode(sys.executable)
        modules: list[Any] = [*sys.modules.values()]
        self._places: list[tuple[dict[str, Any], str, bool]] = [
            (names, name, isinstance(value, bytes))
            for module in modules
            if isinstance(module, ModuleType)
            for names in [object.__getattribute__(module, "__dict__")]  # `vars` would load a lazy module
            for name, value in names.items()
            if isinstance(value, (str, bytes)) and value in paths
        ]

    def change(self, path: str) -> None:
        """Set the path to `path`, another name of the same file in the same folder."""
        for names, name, is_bytes in self._places:
            names[name] = os.fsencode(path) if is_bytes else path
        with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as file:
            file.write(os.fsencode(os.path.basename(path))[:_COMM_BYTES])
