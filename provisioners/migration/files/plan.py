"""Plans the new kernelspec of an old one, compares it with the kernelspec at its place, and writes it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from roost.provisioners.kernel_resources import list_resources, write_kernelspec
from roost.provisioners.migration.report import Translation
from roost.scheduler.errors import ConfigError

from .found_kernelspecs import FoundKernelspec
from .mark import (
    MOST_BYTES,
    Mark,
    add_mark,
    digest_files,
    is_unchanged,
    read_mark,
    read_marked,
    remove_mark,
)
from .target import Target

State = Literal["new", "there", "edited"]
"""The state of a new kernelspec's place.

new      nothing, or the old kernelspec, which is put aside
there    the new kernelspec, which an earlier run has written
edited   a new kernelspec that a person has changed since: the run leaves it alone
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A new kernelspec that is not written yet, or is there already."""

    target: Target
    document: Mapping[str, Any]
    resources: Mapping[str, Path]
    state: State


def plan_kernelspec(
    old: FoundKernelspec, translation: Translation, target: Target, made: Iterable[str]
) -> Plan:
    """Return what a run writes for a translation that is not refused.

    `made` has the folders that earlier runs have made. Raises `ConfigError` if something else stands at the new
    kernelspec's place.
    """
    assert translation.kernel_json is not None
    resources = list_resources(old.folder, most_bytes=MOST_BYTES)
    mark = Mark(
        source=str(old.folder if target.aside is None else target.aside),
        waits_for=translation.waits_for,
        settings=translation.config,
        made=tuple(dict.fromkeys([*map(str, target.list_missing(bool(translation.config))), *made])),
    )
    document = json.loads(json.dumps(add_mark(translation.kernel_json, mark, resources)))
    state = _compare(old, document, resources, target)
    return Plan(target=target, document=document, resources=resources, state=state)


def write_plan(plan: Plan) -> None:
    """Write a new kernelspec, whose folder appears complete. Raises `ConfigError`."""
    aside = plan.target.aside

    def make_way(folder: Path) -> None:
        if aside is not None:
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)

    try:
        write_kernelspec(plan.target.folder, plan.document, plan.resources, make_way=make_way)
    except OSError as problem:
        if problem.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ConfigError(
                f"Another program has just written {plan.target.folder}. Run the command again."
            ) from None
        what = f"{plan.target.folder} cannot be written ({problem.strerror or problem})"
        raise ConfigError(f"{what}: use --user, --sys-prefix or --prefix.") from None


def _compare(
    old: FoundKernelspec, document: Mapping[str, Any], resources: Mapping[str, Path], target: Target
) -> State:
    folder = target.folder
    if not os.path.lexists(folder):
        return "new"
    found = read_marked(folder)
    if found is None:
        if target.aside is not None and folder == old.folder:
            return "new"
        raise ConfigError(f"There is another kernelspec in {folder}, which stays: move it away first.")
    there, mark = found
    if not is_unchanged(folder, there, mark):
        return "edited"
    planned = read_mark(document)
    files = digest_files(list_resources(folder, most_bytes=MOST_BYTES))
    is_same = planned is not None and replace(mark, made=planned.made, digest=planned.digest) == planned
    if is_same and remove_mark(there) == remove_mark(document) and files == digest_files(resources):
        return "there"
    raise ConfigError(
        f"An earlier run has written {folder} from another old kernelspec or with other options: "
        f"run `roost migrate --undo {folder.name}` first."
    )
