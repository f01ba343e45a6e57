"""The table of all options of the three systems, `options.csv`, with what each has become in roost.

Its columns: system, kind, name, meaning, roost, status. A line of the report that needs no more takes its text there.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("options.csv")
STATUSES = ("translated", "same", "differs", "decision", "gap", "none")
"""The values of the column `status`. A `gap` has no equivalent yet."""


@cache
def read_table() -> tuple[dict[str, str], ...]:
    """Return the rows of the table."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@cache
def describe(kind: str, name: str) -> str:
    """Return what an option has become in roost, as a clause; empty if the table has no such option."""
    return _find(kind, name).get("roost", "")


@cache
def find_status(kind: str, name: str) -> str:
    """Return the status of an option; empty if the table has no such option."""
    return _find(kind, name).get("status", "")


def _find(kind: str, name: str) -> dict[str, str]:
    return next((row for row in read_table() if row["kind"] == kind and row["name"] == name), {})
