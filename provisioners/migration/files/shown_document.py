"""Shows a kernel.json without its secrets, and the difference between the old one and the new one."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from typing import Any

from roost.provisioners.migration.secrets import is_secret

HIDDEN = "(a secret, not shown)"
_TEMPLATE = re.compile(r"\{\w+\}")


def show_difference(old: Any, new: Any, old_name: str, new_name: str) -> list[str]:
    """Return the lines of a unified diff of two documents, without secrets."""
    before, after = (json.dumps(hide_secrets(each), indent=1).splitlines() for each in (old, new))
    return list(difflib.unified_diff(before, after, old_name, new_name, lineterm=""))


def hide_secrets(value: Any, name: str = "") -> Any:
    """Return a JSON value with another text in the place of each secret. `name` is the value's key."""
    if isinstance(value, dict):
        return {key: hide_secrets(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return _hide_in_list(value, name)
    is_text = isinstance(value, str) and not _TEMPLATE.fullmatch(value)
    return HIDDEN if is_text and is_secret(name, value) else value


def _hide_in_list(values: Sequence[Any], name: str) -> list[Any]:
    """Return a list without secrets. In a command, the word after an option such as `--token` is one."""
    shown: list[Any] = []
    before = ""
    for value in values:
        is_value = before.startswith("-") and "=" not in before and isinstance(value, str)
        shown.append(hide_secrets(value, before if is_value and not value.startswith("-") else name))
        before = value if isinstance(value, str) else ""
    return shown
