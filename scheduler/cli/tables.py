"""How the `roost` command shows tables and requests."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from roost.placement.model import Request
from roost.placement.model.format import format_amount, format_bytes

from .clean_text import clean

_UNBROKEN = 10_000
"""Width of lines in a pipe: programs such as grep need each row on one line."""


class _CleanConsole(Console):
    """A console that cleans each text and sentence, so that text from other programs cannot change the terminal."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*map(_clean_cell, objects), **options)


def open_console(*, moves_cursor: bool = False) -> Console:
    """Return stdout, as wide as the terminal or as COLUMNS says. In a pipe, lines are never broken.

    With `moves_cursor`, control characters reach the terminal. The caller then prints tables of `build_table` only.
    """
    is_free = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    file = getattr(sys.stdout, "uncleaned", None) if moves_cursor else None
    return _CleanConsole(
        file=file, width=_UNBROKEN if is_free else None, highlight=False, markup=False, emoji=False
    )


def print_table(out: Console, table: Table) -> None:
    """Print a table. Outside a terminal, leave out the blanks at the ends of lines."""
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    out.file.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


class _CleanTable(Table):
    """A table that cleans the text of its cells, so that text from other programs cannot change the terminal."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(*map(_clean_cell, cells), **options)


def _clean_cell(cell: Any) -> Any:
    if isinstance(cell, str):
        return clean(cell)
    if isinstance(cell, Text) and (plain := clean(cell.plain)) != cell.plain:
        return Text(plain, style=cell.style)
    return cell


def build_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table without borders. Long cells are folded, never cut."""
    table = _CleanTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def format_request(request: Request) -> str:
    """Return a request in a few words, or `-` for an empty one."""
    parts = [request.describe_gpus()] if request.gpus else []
    if request.memory_bytes:
        parts.append(format_bytes(request.memory_bytes))
    if request.cpus:
        parts.append(f"{format_amount(request.cpus)} CPU")
    parts += [f"{format_amount(amount)} {name}" for name, amount in request.resources.items()]
    parts += [f"{key}={value}" for key, value in request.labels.items()]
    parts += [f"near {key}={value}" for key, value in request.near.items()]
    parts += [f"tolerates {taint}" for taint in request.tolerates]
    return ", ".join(parts) or "-"


def shorten_ids(ids: Sequence[str], at_least: int = 8) -> dict[str, str]:
    """Return each id with its short form: all have the same length, at least `at_least`, and differ."""
    length = at_least
    longest = max(map(len, ids), default=0)
    while length < longest and len({known[:length] for known in ids}) < len(set(ids)):
        length += 1
    return {known: known[:length] for known in ids}
