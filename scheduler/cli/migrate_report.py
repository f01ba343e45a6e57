"""The report of `roost migrate`: a line for each option of an old kernelspec, and the new files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.text import Text

from roost.provisioners.kernel_json import read_document
from roost.provisioners.migration.files.run import Result, Run
from roost.provisioners.migration.files.settings_file import SettingsPlan, show_as_lines
from roost.provisioners.migration.files.shown_document import show_difference
from roost.provisioners.migration.report import Line

from .tables import build_table, open_console, print_table

_WORDS = {"none": "no equivalent"}
_STYLES = {
    "decision": "bold yellow",
    "none": "bold red",
    "translated": "green",
    "kept": "green",
    "dropped": "cyan",
}
"""The style of each outcome. The first one needs a person."""
_STATES = {
    "to write": ("to write", "yellow"),
    "written": ("written", "green"),
    "there": ("nothing to do", "green"),
    "edited": ("nothing to do, edited since", "green"),
    "moved": ("nothing to do, the old one is gone", "green"),
    "refused": ("refused", "bold red"),
    "error": ("error", "bold red"),
}


def list_run(run: Run, *, has_diff: bool) -> dict[str, Any]:
    """Return a run as JSON values, without secrets."""
    return {
        "kernelspecs": [_list_result(result, has_diff=has_diff) for result in run.results],
        "server": [asdict(line) for line in run.server],
        "settings": [
            {"file": str(plan.file), "state": plan.state, "values": plan.values, "problem": plan.problem}
            for plan in run.settings
        ],
        "exit_code": run.exit_code,
    }


def _list_result(result: Result, *, has_diff: bool) -> dict[str, Any]:
    translation, plan = result.translation, result.plan
    found = {
        "name": result.name,
        "state": result.state,
        "from": str(result.old.folder) if result.old else "",
        "folder": str(plan.target.folder) if plan else "",
        "problem": result.problem,
        "backend": translation.backend if translation else "",
        "waits_for": translation.waits_for if translation else "",
        "needs_decision": bool(translation and translation.needs_decision),
        "note": plan.target.note if plan else "",
        "lines": [asdict(line) for line in translation.lines] if translation else [],
    }
    return {**found, "diff": _list_difference(result)} if has_diff else found


def show_run(run: Run, *, has_diff: bool, is_written: bool) -> None:
    """Print a run for people."""
    out = open_console()
    if not run.results:
        print(
            "No kernelspec of Enterprise Gateway, Gateway Provisioners or Remote Provisioners is installed."
        )
    for result in run.results:
        _show_result(out, result, has_diff=has_diff)
    if run.server:
        out.print(Text("The old server", style="bold"))
        _show_lines(out, run.server)
        out.print()
    for plan in run.settings:
        _show_settings(out, plan, is_written=is_written)
    if len(run.results) > 1:
        out.print(_summarize(run.results))


def _show_result(out: Console, result: Result, *, has_diff: bool) -> None:
    word, style = _STATES[result.state]
    folder = f"  {result.plan.target.folder}" if result.plan else ""
    out.print(Text.assemble((result.name, "bold"), "  ", (word, style), folder))
    if result.problem:
        out.print(result.problem)
    translation = result.translation
    if translation and result.state != "edited":
        if result.plan and result.plan.target.note and result.state in ("to write", "written"):
            out.print(result.plan.target.note)
        if translation.waits_for:
            out.print(f"It waits for {translation.waits_for}: its kernels cannot start before.")
        if has_diff:
            for line in _list_difference(result):
                out.print(line)
        else:
            _show_lines(out, translation.lines)
    out.print()


def _show_lines(out: Console, lines: Sequence[Line]) -> None:
    table = build_table("", "OPTION", "")
    order = list(_STYLES)
    for line in sorted(lines, key=lambda line: order.index(line.outcome)):
        default = f" (until then: {line.default})" if line.default else ""
        outcome = Text(_WORDS.get(line.outcome, line.outcome), style=_STYLES[line.outcome])
        table.add_row(outcome, line.option, f"{line.text}{default}")
    if lines:
        print_table(out, table)


def _list_difference(result: Result) -> list[str]:
    if result.plan is None or result.old is None:
        return []
    old, _ = read_document(result.old.folder)
    names = (str(result.old.folder / "kernel.json"), str(result.plan.target.folder / "kernel.json"))
    return show_difference(old, result.plan.document, *names)


def _show_settings(out: Console, plan: SettingsPlan, *, is_written: bool) -> None:
    if plan.state == "error":
        out.print(plan.problem)
        return
    if plan.state == "by hand":
        theirs = ", ".join(map(str, plan.theirs))
        out.print(
            f"The kernelspecs need these settings. Add them yourself, because {theirs} is a file of yours:"
        )
    elif plan.state == "there":
        out.print("The settings that the kernelspecs need are there:")
    elif is_written:
        out.print(f"{plan.file} has the settings that the kernelspecs need, for the next service:")
    else:
        out.print(f"{plan.file} would get the settings that the kernelspecs need:")
    for line in show_as_lines(plan.values):
        out.print(f"  {line}")


def _summarize(results: Sequence[Result]) -> str:
    counts: Mapping[str, int] = Counter(_STATES[result.state][0] for result in results)
    parts = [f"{number} {word}" for word, number in counts.items()]
    decisions = sum(bool(each.translation and each.translation.needs_decision) for each in results)
    waiting = sum(bool(each.translation and each.translation.waits_for) for each in results)
    parts += [f"{decisions} with decisions"] if decisions else []
    parts += [f"{waiting} that wait for a backend"] if waiting else []
    return f"{len(results)} kernelspecs: {', '.join(parts)}."
