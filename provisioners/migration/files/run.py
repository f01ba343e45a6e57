"""One run of a migration: its kernelspecs, and the result for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from roost.provisioners.migration.report import Line, Translation
from roost.scheduler.errors import ConfigError

from .found_kernelspecs import FoundKernelspec, find_all, find_named
from .plan import Plan, plan_kernelspec, write_plan
from .settings_file import SettingsPlan, Values, plan_settings, write_settings
from .target import Target, find_config_folder
from .undo import Migrated, find_migrated, remove_made, undo

State = Literal["to write", "written", "there", "edited", "moved", "refused", "error"]
"""The state of a kernelspec after a run.

to write   a run without --check and --diff writes it
written    this run has written it
there      an earlier run has written it
edited     an earlier run has written it, and a person has changed it since
moved      an earlier run has written it, and the old one is gone
refused    roost has no equivalent for it
error      it cannot be read, or the new one cannot be written
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a run for one kernelspec. `problem` is a sentence, for an error and a refusal."""

    name: str
    state: State
    old: FoundKernelspec | None = None
    translation: Translation | None = None
    plan: Plan | None = None
    problem: str = ""

    @property
    def is_pending(self) -> bool:
        """True if a person has to do something before kernels of this kernelspec start as before."""
        if self.state == "refused":
            return True
        is_new = self.state in ("to write", "written", "there")
        translation = self.translation
        return (
            is_new and translation is not None and (translation.needs_decision or bool(translation.waits_for))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The results of a run, or its plans."""

    results: Sequence[Result]
    settings: Sequence[SettingsPlan] = ()
    server: Sequence[Line] = ()
    """A line for each setting of the old server."""

    @property
    def exit_code(self) -> int:
        """1 after an error, 3 if a person has to do something, else 0."""
        states = {*(result.state for result in self.results), *(plan.state for plan in self.settings)}
        if "error" in states:
            return 1
        has_decision = any(line.outcome == "decision" for line in self.server)
        return (
            3
            if has_decision or "by hand" in states or any(result.is_pending for result in self.results)
            else 0
        )


def find_kernelspecs(
    names: Iterable[str], *, is_all: bool, more: Sequence[Path]
) -> tuple[list[FoundKernelspec], list[Result]]:
    """Return the kernelspecs of a run, and the results for the names that have none."""
    found = {old.folder: old for old in (find_all(more) if is_all else ())}
    rest = []
    for name in dict.fromkeys(names):
        try:
            old = find_named(name, more)
        except ConfigError as problem:
            rest.append(Result(name=name, state="error", problem=problem.user_message))
            continue
        if old is None:
            rest.append(Result(name=name, state="moved"))
        else:
            found[old.folder] = old
    return list(found.values()), rest


def plan_result(
    old: FoundKernelspec,
    translate: Callable[[Path], Translation],
    choose: Callable[[FoundKernelspec], Target],
    migrated: Sequence[Migrated],
) -> Result:
    """Return what a run does for one kernelspec. `migrated` are those of earlier runs."""
    translation = None
    try:
        translation = translate(old.folder)
        if translation.kernel_json is None:
            return Result(
                name=old.name, state="refused", old=old, translation=translation, problem=translation.refusal
            )
        made = [folder for each in migrated if each.mark for folder in each.mark.made]
        plan = plan_kernelspec(old, translation, choose(old), made)
    except ConfigError as problem:
        return Result(
            name=old.name, state="error", old=old, translation=translation, problem=problem.user_message
        )
    state: State = "to write" if plan.state == "new" else plan.state
    return Result(name=old.name, state=state, old=old, translation=translation, plan=plan)


def plan_all_settings(
    results: Iterable[Result], migrated: Sequence[Migrated], are_set: Callable[[Values], bool]
) -> list[SettingsPlan]:
    """Return what becomes of the settings that the kernelspecs of a run need, for each folder of settings.

    `are_set` says whether the files of persons have some settings. Raises `ConfigError` for a file that is none.
    """
    wanted: dict[Path, Values] = {}
    for result in results:
        if result.plan and result.translation and result.state in ("to write", "there"):
            wanted[result.plan.target.folder] = result.translation.config
    plans = []
    for folder in dict.fromkeys(find_config_folder(each.parent) for each in wanted):
        before = _read_marks(migrated, folder)
        new = {each: values for each, values in wanted.items() if find_config_folder(each.parent) == folder}
        plans.append(plan_settings(folder, before, {**before, **new}, are_set))
    return [plan for plan in plans if plan.values]


def write_run(run: Run) -> Run:
    """Write what a run plans; return it with its results. A kernelspec that cannot be written stops no other."""
    results = [_write(result) if result.state == "to write" else result for result in run.results]
    settings = [write_settings(plan) if plan.state == "new" else plan for plan in run.settings]
    return replace(run, results=results, settings=settings)


def undo_all(names: Sequence[str], more: Sequence[Path]) -> tuple[list[Path], list[Path], list[str]]:
    """Undo the migration of these kernelspecs, or of all.

    Return the folders that were removed, the files of settings that are a person's and stay, and the problems as
    sentences.
    """
    found = find_migrated(more)
    wanted = {name.lower() for name in names}
    chosen = [each for each in found if not names or each.folder.name.lower() in wanted]
    known = {each.folder.name.lower() for each in found}
    problems = [
        f"No migration has written a kernelspec {name!r:.80}." for name in names if name.lower() not in known
    ]
    undone = []
    for each in chosen:
        try:
            undo(each)
            undone.append(each)
        except ConfigError as problem:
            problems.append(problem.user_message)
    kept: list[Path] = []
    for folder in dict.fromkeys(find_config_folder(each.folder.parent) for each in undone):
        before = _read_marks(found, folder)
        after = _read_marks([each for each in found if each not in undone], folder)
        plan = plan_settings(folder, before, after, lambda values: True)
        if plan.state == "new":
            problems += filter(None, [write_settings(plan).problem])
        elif plan.state == "by hand":
            kept += plan.theirs
    remove_made(undone)
    return [each.folder for each in undone], kept, problems


def _write(result: Result) -> Result:
    assert result.plan is not None
    try:
        write_plan(result.plan)
    except ConfigError as problem:
        return replace(result, state="error", problem=problem.user_message)
    return replace(result, state="written")


def _read_marks(migrated: Iterable[Migrated], folder: Path) -> dict[Path, Values]:
    """Return the settings that the marks of kernelspecs name whose settings are in `folder`."""
    return {
        each.folder: each.mark.settings
        for each in migrated
        if each.mark and find_config_folder(each.folder.parent) == folder
    }
