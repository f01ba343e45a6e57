"""`roost migrate`: kernelspecs of Enterprise Gateway, Gateway Provisioners and Remote Provisioners become roost's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from roost.provisioners.migration import Line, Translation, read_server, translate, translate_server
from roost.provisioners.migration import folders as files
from roost.scheduler.backends.registry import backend_names, get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.config.files import load_settings
from roost.scheduler.errors import ConfigError

from .options import print_answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of a run for one kernelspec. `problem` is a sentence, for an error and a refusal.

    to write   a run without --check and --diff writes it
    written    this run has written it
    there      an earlier run has written it
    edited     an earlier run has written it, and a person has changed it since
    refused    roost has no equivalent for it
    error      it cannot be read, or the new one cannot be written
    """

    name: str
    state: str
    problem: str = ""
    old: files.Found | None = None
    place: Path | None = None
    translation: Translation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings that the kernelspecs of a run need.

    `state` is `there` if nothing is to do, `to write` or `written` for a new file, and `by hand` if `theirs` are files
    of a person, to which `values` must be added.
    """

    file: Path
    state: str
    values: Mapping[str, Mapping[str, Any]]
    theirs: Sequence[Path] = ()


def migrate(arguments: argparse.Namespace) -> int:
    """Translate kernelspecs and write them. Return 0, 1 after an error, or 3 if a person has to do something."""
    from .migrate_report import list_run, show_run

    if not arguments.names and not arguments.all and not arguments.undo:
        raise ConfigError("roost migrate names no kernelspec: name some, or give --all.")
    home = _find_home(arguments)
    more = [*files.read_homes(arguments.sources), *([home] if home else [])]
    if arguments.undo:
        return _undo(arguments, more)
    server: dict[str, Any] = {}
    for file in arguments.server:  # those of a later file win
        server.update(read_server(Path(file)))
    of_server = translate_server(server)
    results = [_plan(old, home, server, arguments.keep_launcher) for old in _find(arguments, more)]
    placed = [result for result in results if result.place]
    settings = _plan_settings(placed, of_server.list_settings(), home)
    if not arguments.check and not arguments.diff:
        digests = _find_digests(settings, more)
        if settings and settings.state == "to write":
            digests = files.write_settings(settings.file, settings.values)
            settings = replace(settings, state="written")
        results = [_write(result, digests) if result.state == "to write" else result for result in results]
    code = _find_code(results, of_server.lines, settings)
    document = list_run(results, of_server.lines, settings, code, has_diff=arguments.diff)
    print_answer(
        arguments, document, lambda: show_run(results, of_server.lines, settings, has_diff=arguments.diff)
    )
    return code


def _find_home(arguments: argparse.Namespace) -> Path | None:
    """Return the folder of kernelspecs that an option names. Raises `ConfigError`."""
    from jupyter_core.paths import jupyter_data_dir

    prefix = sys.prefix if arguments.sys_prefix else arguments.prefix
    if arguments.user:
        return Path(jupyter_data_dir()).absolute() / "kernels"
    if prefix is None:
        return None
    if not prefix or "\0" in prefix:
        raise ConfigError("--prefix names no folder: give one, or use --user.")
    return Path(prefix).absolute() / "share" / "jupyter" / "kernels"


def _find(arguments: argparse.Namespace, more: Sequence[Path]) -> list[files.Found | Result]:
    """Return the old kernelspecs of a run, and an error for each name that has none."""
    found: dict[str, files.Found | Result] = {}
    for old in files.find_all(more) if arguments.all else ():
        found[old.name] = old
    for name in dict.fromkeys(arguments.names):
        try:
            old = files.find_named(name, more)
            found[old.name] = old
        except ConfigError as problem:
            found[name] = Result(name=name, state="error", problem=problem.user_message)
    return list(found.values())


def _plan(
    old: files.Found | Result, home: Path | None, server: Mapping[str, Any], keep_launcher: bool
) -> Result:
    """Return what a run does for one kernelspec."""
    if isinstance(old, Result):
        return old
    found = Result(name=old.name, state="edited", old=old, place=old.place)
    if old.is_edited or not old.folder.exists():  # it is a person's now, or the old one is gone
        return found
    try:
        own = translate(old.folder, name=old.name, server=server, keep_launcher=keep_launcher)
        if own.kernel_json is None:
            return replace(found, state="refused", problem=own.refusal, translation=own)
        place = files.choose_place(old, home)
    except ConfigError as problem:
        return replace(found, state="error", problem=problem.user_message)
    is_there = old.place is not None and old.place.exists()
    return replace(found, state="there" if is_there else "to write", place=place, translation=own)


def _plan_settings(
    results: Sequence[Result], of_server: Mapping[str, Mapping[str, Any]], home: Path | None
) -> Settings | None:
    """Return what becomes of the settings that the kernelspecs and the old server need; None if none needs some.

    Without a kernelspec, whose mark would tell `--undo` of the file, a person writes them.
    """
    from jupyter_core.paths import jupyter_data_dir

    values: dict[str, dict[str, Any]] = {}
    each_own = [result.translation.settings for result in results if result.translation]
    for own in [*each_own, of_server]:
        for section, settings in own.items():
            known = values.setdefault(section, {})
            for name, value in settings.items():
                known[name] = _join(known[name], value) if name in known else value
    if not values:
        return None
    places = [result.place.parent for result in results if result.place]
    file, theirs = files.find_settings(
        next(iter(places), home or Path(jupyter_data_dir()).absolute() / "kernels")
    )
    if not places:
        theirs = theirs or [file]
    state = "to write" if not theirs else "there" if _are_set(values) else "by hand"
    return Settings(file=file, state=state, values=values, theirs=theirs)


def _find_digests(settings: Settings | None, more: Sequence[Path]) -> dict[str, str]:
    """Return the files of earlier migrations that the kernelspecs need too, with their digests."""
    known = [files.list_settings(old) for old in files.find_all(more)] if settings else []
    theirs = list(map(str, settings.theirs)) if settings else []
    return {file: digest for each in known for file, digest in each.items() if file in theirs}


def _join(one: Any, other: Any) -> Any:
    """Join two lists or two dicts. Of other values, the first one counts."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {**other, **{name: _join(value, other.get(name)) for name, value in one.items()}}
    if isinstance(one, list) and isinstance(other, list):
        return sorted({*one, *other})
    return one


def _are_set(values: Mapping[str, Mapping[str, Any]]) -> bool:
    """True if a service that starts now has these settings."""
    for section, wanted in values.items():
        backend = next((name for name in backend_names() if get_spec(name).section == section), "")
        try:
            scheduler, own = load_settings(backend or DEFAULT_BACKEND, {})
        except ConfigError:
            return False
        found = own if backend else scheduler
        for name, value in wanted.items():
            there = getattr(found, name, None)
            if not (set(value) <= set(there or ()) if isinstance(value, list) else there == value):
                return False
    return True


def _write(result: Result, digests: Mapping[str, str]) -> Result:
    """Write a new kernelspec. One that cannot be written stops no other."""
    assert result.old
    assert result.place
    assert result.translation
    assert result.translation.kernel_json
    try:
        files.write_new(result.old, result.place, result.translation.kernel_json, digests)
    except ConfigError as problem:
        return replace(result, state="error", problem=problem.user_message)
    return replace(result, state="written")


def _find_code(results: Sequence[Result], server: Sequence[Line], settings: Settings | None) -> int:
    if any(result.state == "error" for result in results):
        return 1
    asks = [bool(result.translation and result.translation.needs_decision) for result in results]
    refused = [result.state == "refused" for result in results]
    of_server = [line.kind == "please decide" for line in server]
    by_hand = settings is not None and settings.state == "by hand"
    return 3 if any([*asks, *refused, *of_server, by_hand]) else 0


def _undo(arguments: argparse.Namespace, more: Sequence[Path]) -> int:
    problems: list[str] = []
    removed: list[Path] = []
    left = [old for old in files.find_all(more) if old.place]
    names = {name.lower() for name in arguments.names}
    known = {old.name.lower() for old in left}
    problems += [f"No migration has written a kernelspec {name!r:.80}." for name in sorted(names - known)]
    settings: dict[str, str] = {}
    for old in [each for each in left if not names or each.name.lower() in names]:
        own = files.list_settings(old)
        try:
            files.undo(old)
        except ConfigError as problem:
            problems.append(problem.user_message)
            continue
        settings |= own
        left.remove(old)
        removed += [old.place] if old.place else []
    for old in left:  # their kernels need these files
        settings = {file: digest for file, digest in settings.items() if file not in files.list_settings(old)}
    kept = files.remove_settings(settings)

    def show() -> None:
        for folder in removed:
            print(f"Removed {folder}")
        if not removed and not problems:
            print("Nothing to undo.")
        for file in kept:
            print(
                f"{file} has changed since the migration and stays: remove what no kernelspec needs any more."
            )
        for problem in problems:
            print(f"roost: {problem}", file=sys.stderr)

    document = {"removed": list(map(str, removed)), "settings": list(map(str, kept)), "problems": problems}
    print_answer(arguments, document, show)
    return 1 if problems else 0
