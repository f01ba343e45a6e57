"""The report of `roost migrate`: decisions, then options that are taken over, then those that are not needed."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from difflib import unified_diff
from typing import Any

from rich.console import Console
from rich.text import Text

from roost.provisioners.kernel_json import read_document
from roost.provisioners.migration import Line
from roost.provisioners.migration.values import is_secret

from .migrate import Result, Settings
from .tables import open_console

_STYLES = {"please decide": "bold yellow", "taken over": "green", "not needed": "cyan"}
_STATES = {
    "to write": ("to write", "yellow"),
    "written": ("written", "green"),
    "there": ("nothing to do, written before", "green"),
    "edited": ("nothing to do, it is yours now", "green"),
    "refused": ("refused", "bold red"),
    "error": ("error", "bold red"),
}
_HIDDEN = "(a secret, not shown)"


def list_run(
    results: Sequence[Result], server: Sequence[Line], settings: Settings | None, code: int, *, has_diff: bool
) -> dict[str, Any]:
    """Return a run as JSON values, without secrets."""
    own = {} if settings is None else {**asdict(settings), "file": str(settings.file)}
    return {
        "kernelspecs": [_list_result(result, has_diff=has_diff) for result in results],
        "server": [asdict(line) for line in server],
        "settings": {**own, "theirs": list(map(str, own["theirs"]))} if own else None,
        "exit_code": code,
    }


def _list_result(result: Result, *, has_diff: bool) -> dict[str, Any]:
    translation = result.translation
    found = {
        "name": result.name,
        "state": result.state,
        "from": str(result.old.folder) if result.old else "",
        "folder": str(result.place or ""),
        "problem": result.problem,
        "backend": translation.backend if translation else "",
        "needs_decision": bool(translation and translation.needs_decision),
        "lines": [asdict(line) for line in translation.lines] if translation else [],
    }
    return {**found, "diff": _list_difference(result)} if has_diff else found


def show_run(
    results: Sequence[Result], server: Sequence[Line], settings: Settings | None, *, has_diff: bool
) -> None:
    """Print a run for people."""
    out = open_console()
    if not results:
        print(
            "No kernelspec of Enterprise Gateway, Gateway Provisioners or Remote Provisioners is installed."
        )
    for result in results:
        word, style = _STATES[result.state]
        backend = f"  backend {result.translation.backend}" if result.translation and result.place else ""
        out.print(
            Text.assemble((result.name, "bold"), "  ", (word, style), f"{backend}  {result.place or ''}")
        )
        if result.problem:
            out.print(result.problem)
        if has_diff:
            print("\n".join(_list_difference(result)))
        elif result.translation:
            _show_lines(out, result.translation.lines)
        out.print()
    if server:
        out.print(Text("The old server", style="bold"))
        _show_lines(out, server)
        out.print()
    if settings:
        _show_settings(out, settings)
    if len(results) > 1:
        counts = Counter(_STATES[result.state][0] for result in results)
        asks = sum(bool(each.translation and each.translation.needs_decision) for each in results)
        parts = [f"{number} {word}" for word, number in counts.items()] + [f"{asks} with decisions"] * bool(
            asks
        )
        out.print(f"{len(results)} kernelspecs: {', '.join(parts)}.")


def _show_lines(out: Console, lines: Sequence[Line]) -> None:
    """Print lines by their kind. Options with the same text share one."""
    for kind, style in _STYLES.items():
        groups: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
        for line in lines:
            if line.kind == kind:
                groups.setdefault((line.text, line.default, line.details), []).append(line.option)
        label = kind
        for (text, default, details), options in groups.items():
            until = f" (until then: {default})" if default else ""
            body = f"{_join_options(options)}: {text or 'as before'}{until}"
            first, *rest = textwrap.wrap(body, out.width - 16, break_on_hyphens=False) or [""]
            out.print(Text.assemble((f"  {label:14}", style), first), soft_wrap=True)
            for each in [*rest, *(f"  | {detail}" for detail in details)]:
                out.print(Text(f"{'':16}{each}"), soft_wrap=True)
            label = ""


def _join_options(options: Iterable[str]) -> str:
    """Return options with each place once, as `env A, B; argv --queue`."""
    places: dict[str, list[str]] = {}
    for option in options:
        place, _, name = option.rpartition(" ")
        places.setdefault(place, []).append(name)
    return "; ".join(f"{place} {', '.join(names)}".strip() for place, names in places.items())


def _list_difference(result: Result) -> list[str]:
    """Return the lines of a unified diff of both documents, without secrets."""
    translation = result.translation
    if translation is None or result.old is None or translation.kernel_json is None:
        return []
    old, _ = read_document(result.old.folder)
    before, after = (
        json.dumps(_hide(each), indent=1).splitlines() for each in (old, translation.kernel_json)
    )
    names = (str(result.old.folder / "kernel.json"), f"{result.place}/kernel.json")
    return list(unified_diff(before, after, *names, lineterm=""))


def _hide(value: Any, name: str = "") -> Any:
    """Return a JSON value without secrets. `name` is its key, or the option before it in a command."""
    if isinstance(value, Mapping):
        return {key: _hide(part, key) for key, part in value.items()}
    if isinstance(value, list):
        options = [
            str(each) if str(each).startswith("-") and "=" not in str(each) else name for each in value
        ]
        return [_hide(part, before) for before, part in zip([name, *options], value)]  # noqa: B905
    return _HIDDEN if isinstance(value, str) and is_secret(name, value) else value


def _show_settings(out: Console, settings: Settings) -> None:
    sentence = {
        "there": "The settings that the kernelspecs need are there:",
        "to write": f"{settings.file} would get the settings that the kernelspecs need:",
        "written": f"{settings.file} has the settings that the kernelspecs need, for the next service:",
        "by hand": f"The kernelspecs need these settings. Add them to {', '.join(map(str, settings.theirs))}:",
    }
    out.print(sentence[settings.state])
    for section, own in settings.values.items():
        for name, value in own.items():
            out.print(f"  c.{section}.{name} = {value!r}")
