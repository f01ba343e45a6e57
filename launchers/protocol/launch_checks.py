"""Checks of a kernel's command, variables and working folder, which every operating system would refuse.

The service refuses them before anything starts, and the agent before it forks or executes anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping


def find_impossible(argv: Iterable[str], env: Mapping[str, str], cwd: str = "") -> str:
    """Return why no process can have this command, these variables or this folder, as a clause; empty if one can."""
    for name in env:
        if not name or "=" in name:
            return f"a variable cannot have the name {name!a:.60}"
    for part in (*argv, *env, *env.values(), cwd):
        if "\0" in part:  # it ends a text in C
            return f"the command or a variable has a zero byte: {part.partition(chr(0))[0]!a:.60}"
        try:
            os.fsencode(part)
        except UnicodeEncodeError:
            return f"the command or a variable has characters that no process can have: {part!a:.60}"
    return ""
