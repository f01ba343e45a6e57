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
    texts = {"the command": argv, "the name of a variable": env, "the working folder": (cwd,)}
    for what, parts in texts.items():
        for part in parts:
            if problem := _find_unfit(part):
                return f"{what} has {problem}: {part.partition(chr(0))[0]!a:.60}"
    for name, value in env.items():
        if problem := _find_unfit(value):
            return f"the variable {name} has {problem}"  # its value may be a secret
    return ""


def _find_unfit(text: str) -> str:
    if "\0" in text:  # it ends a text in C
        return "a zero byte"
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return "characters that no process can have"
    return ""
