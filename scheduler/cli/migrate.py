"""`roost migrate`: kernelspecs of Enterprise Gateway, Gateway Provisioners and Remote Provisioners become roost's."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from roost.provisioners.migration import Translation, read_server, translate, translate_server
from roost.provisioners.migration.files.found_kernelspecs import read_folders
from roost.provisioners.migration.files.run import (
    Run,
    find_kernelspecs,
    plan_all_settings,
    plan_result,
    undo_all,
    write_run,
)
from roost.provisioners.migration.files.settings_file import join
from roost.provisioners.migration.files.target import choose_target, find_home
from roost.provisioners.migration.files.undo import find_migrated
from roost.scheduler.backends.registry import backend_names, get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.config.files import load_settings
from roost.scheduler.errors import ConfigError

from .migrate_report import list_run, show_run
from .options import print_answer


def migrate(arguments: argparse.Namespace) -> int:
    """Translate kernelspecs and write them. Return 0, 1 after an error, or 3 if a person has to do something."""
    if not arguments.names and not arguments.all and not arguments.undo:
        raise ConfigError("roost migrate names no kernelspec: name some, or give --all.")
    if arguments.undo:
        return _undo(arguments)
    more = read_folders(arguments.sources)
    migrated = find_migrated(_list_homes(arguments))
    server = _read_servers(arguments.server)
    found, rest = find_kernelspecs(arguments.names, is_all=arguments.all, more=more)
    of_server = translate_server(server)

    def translated(folder: Path) -> Translation:
        own = translate(folder, server=server, keep_launcher=arguments.keep_launcher)
        return replace(own, config=join([own.config, of_server.config]))

    choose = partial(choose_target, prefix=_find_prefix(arguments), is_user=arguments.user)
    results = [plan_result(old, translated, choose, migrated) for old in found]
    settings = plan_all_settings(results, migrated, _are_set)
    run = Run(results=[*results, *rest], settings=settings, server=of_server.lines)
    is_written = not arguments.check and not arguments.diff
    if is_written:
        run = write_run(run)
    document = list_run(run, has_diff=arguments.diff)
    print_answer(arguments, document, lambda: show_run(run, has_diff=arguments.diff, is_written=is_written))
    return run.exit_code


def _find_prefix(arguments: argparse.Namespace) -> str | None:
    return sys.prefix if arguments.sys_prefix else arguments.prefix


def _list_homes(arguments: argparse.Namespace) -> list[Path]:
    """Return more folders of kernelspecs, beside those of Jupyter."""
    prefix = _find_prefix(arguments)
    return [*read_folders(arguments.sources), *([] if prefix is None else [find_home(prefix)])]


def _read_servers(files: Sequence[str]) -> Mapping[str, Any]:
    """Return the settings of the old server. Those of a later file win."""
    settings: dict[str, Any] = {}
    for file in files:
        settings.update(read_server(Path(file)))
    return settings


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
            is_set = set(value) <= set(there or ()) if isinstance(value, list) else there == value
            if not is_set:
                return False
    return True


def _undo(arguments: argparse.Namespace) -> int:
    removed, kept, problems = undo_all(arguments.names, _list_homes(arguments))
    document = {
        "removed": [str(folder) for folder in removed],
        "settings": [str(file) for file in kept],
        "problems": problems,
    }

    def show() -> None:
        for folder in removed:
            print(f"Removed {folder}")
        if not removed and not problems:
            print("Nothing to undo.")
        for file in kept:
            print(f"{file} is not the migration's and stays: remove what no kernelspec needs any more.")
        for problem in problems:
            print(f"roost: {problem}", file=sys.stderr)

    print_answer(arguments, document, show)
    return 1 if problems else 0
