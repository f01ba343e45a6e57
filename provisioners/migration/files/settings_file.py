"""The file `jupyter_roost_config.json` that migrated kernelspecs need.

It holds what their marks say, and nothing else. So it is known as the migration's own. Any other file is a person's,
and stays as it is: the user is then told what to add.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from jupyter_core.paths import jupyter_config_path

from roost.scheduler.input_files import read_input

Values = Mapping[str, Mapping[str, Any]]
_NAMES = ("jupyter_roost_config.py", "jupyter_roost_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsPlan:
    """The plan for the settings in one folder.

    new      the file is written, or written again with more or less in it
    there    it is there already, or is not needed
    by hand  a person has settings, to which `values` must be added by hand
    error    the file could not be written
    """

    file: Path
    state: Literal["new", "there", "by hand", "error"]
    values: Values
    theirs: tuple[Path, ...] = ()
    """The files of persons."""
    problem: str = ""
    """Why the file could not be written: a sentence. Empty if it could."""


def plan_settings(
    folder: Path,
    before: Mapping[Path, Values],
    after: Mapping[Path, Values],
    are_set: Callable[[Values], bool],
) -> SettingsPlan:
    """Return what becomes of the settings in `folder`.

    `before` and `after` have the settings that each kernelspec's mark names, before and after the run. `are_set` says
    whether the files of persons have these settings.
    """
    file, old, values = folder / _NAMES[1], merge(before), merge(after)
    if not old and not values:
        return SettingsPlan(file=file, state="there", values=values)
    content = read_input(file) if os.path.lexists(file) else None
    if content == (_encode(values) if values else None):
        return SettingsPlan(file=file, state="there", values=values)
    folders = dict.fromkeys([str(folder), *jupyter_config_path()])
    theirs = [Path(each, name) for each in folders for name in _NAMES]
    theirs = [each for each in theirs if os.path.lexists(each) and (each != file or content != _encode(old))]
    if not theirs:
        return SettingsPlan(file=file, state="new", values=values)
    state: Literal["there", "by hand"] = "there" if values and are_set(values) else "by hand"
    return SettingsPlan(file=file, state=state, values=values, theirs=tuple(theirs))


def write_settings(plan: SettingsPlan) -> SettingsPlan:
    """Write the file, or remove it if nothing needs it any more. Return the plan, with the problem if there is one."""
    temporary = plan.file.with_name(f".{plan.file.name}.{os.getpid()}.tmp")
    try:
        if plan.values:
            plan.file.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(_encode(plan.values))
                temporary.replace(plan.file)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            plan.file.unlink(missing_ok=True)
    except OSError as problem:
        text = f"{plan.file} cannot be written: {problem.strerror or problem}."
        return replace(plan, state="error", problem=text)
    return plan


def merge(settings: Mapping[Path, Values]) -> dict[str, dict[str, Any]]:
    """Return the settings of all kernelspecs together, in the order of their folders."""
    return join([values for _, values in sorted(settings.items())])


def join(settings: Iterable[Values]) -> dict[str, dict[str, Any]]:
    """Return all settings together. Lists and dicts are joined. Of other values that differ, the first one counts."""
    joined: dict[str, dict[str, Any]] = {}
    for values in settings:
        joined = _join(joined, values)
    return joined


def _join(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        new = {name: value for name, value in other.items() if name not in one}
        return {**{name: _join(value, other.get(name)) for name, value in one.items()}, **new}
    if isinstance(one, list) and isinstance(other, list):
        return [*one, *(each for each in other if each not in one)]
    return one


def show_as_lines(values: Values) -> Sequence[str]:
    """Return settings as lines of `jupyter_roost_config.py`."""
    return [
        f"c.{section}.{name} = {value!r}" for section, own in values.items() for name, value in own.items()
    ]


def _encode(values: Values) -> bytes:
    return (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
