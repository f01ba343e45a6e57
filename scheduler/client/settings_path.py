"""The folders in which a service looks for its settings, compared with those of another process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_config_path

from roost.scheduler.messages import Finding

from .advice import write_command

_NAMES = ("jupyter_roost_config.py", "jupyter_roost_config.json")


def compare_paths(one: Sequence[str], other: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the folders that only the one path has, and those of only the other. None if a path is empty."""
    if not one or not other:
        return (), ()
    return tuple(each for each in one if each not in other), tuple(each for each in other if each not in one)


def find_other_path(facts: Mapping[str, Any], backend: str, options: Mapping[str, Any]) -> list[Finding]:
    """Return a warning if the service with these facts reads settings elsewhere than a service started from here.

    Folders without settings do not count, and `config_file` names a file for both.
    """
    theirs, ours = compare_paths(facts["config_path"], jupyter_config_path())
    if "config_file" in options or not any(
        Path(each, name).exists() for each in theirs + ours for name in _NAMES
    ):
        return []
    if theirs and ours:
        what = f"this service reads its settings from {_list(theirs)}, and this shell from {_list(ours)}"
    elif theirs:
        what = f"this service reads settings from {_list(theirs)}, and this shell does not"
    else:
        what = f"this service does not read the settings in {_list(ours)}, and this shell does"
    command = write_command("restart-service", backend, options)
    do = f"if it should read those of this shell, run `{command} --here`: kernels live on"
    return [{"level": "warning", "what": what, "do": do}]


def _list(folders: Sequence[str]) -> str:
    """Return the folders that have settings; all of them if none has."""
    return ", ".join(
        [each for each in folders if any(Path(each, name).exists() for name in _NAMES)] or folders
    )
