"""The flaky tests that are known, `tests/flaky.toml`, and whether a change has edited a test."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from .parts import git
from .results import Failure

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path("tests/flaky.toml")
SUITES = Path("tests/testing")
"""Classes of tests inherit functions from the files of this folder."""
MOST = 10
"""At most how many tests the file may have."""
_COUNTS = timedelta(days=14)
_RACE_COUNTS = timedelta(days=3)
"""For how long an entry counts, by the date on which git first saw its test in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of the file, and when git first saw its test there."""

    test: str
    cause: str
    since: datetime

    def counts(self, now: datetime) -> bool:
        return now - self.since < (_RACE_COUNTS if self.cause == "product" else _COUNTS)


def read_entries() -> list[Entry]:
    """Return the entries of `tests/flaky.toml`. Raises `ValueError`."""
    if not FILE.exists():
        return []
    tables = tomllib.loads(FILE.read_text(encoding="utf-8")).get("flaky", [])
    return [Entry(test=each["test"], cause=each["cause"], since=_find_since(each["test"])) for each in tables]


def write_lines(failures: Iterable[Failure]) -> str:
    """Return the lines that can be pasted into the file for flaky tests. A person fills in the cause of late ones."""
    today = datetime.now(timezone.utc).date()
    lines = []
    for each in failures:
        cause, counts = ("product", _RACE_COUNTS) if each.is_race else ("?", _COUNTS)
        lines += ["[[flaky]]", f"test = {_quote(each.test)}", f"since = {today}", f"until = {today + counts}"]
        lines += [f"error = {_quote(each.error)}", f"cause = {_quote(cause)}", ""]
    return "\n".join(lines)


def is_edited(test: str, base: str) -> bool:
    """True if the change adds or edits the function of this test. A moved file does not count."""
    path, _, names = test.partition("[")[0].partition("::")
    *classes, function = names.split("::")
    homes = [path, *map(str, sorted(SUITES.glob("*.py")))] if classes else [path]
    return any(
        _find_function(Path(home).read_text(encoding="utf-8"), function)
        != _find_function(_read_before(home, base), function)
        for home in homes
    )


def _find_since(test: str) -> datetime:
    dates = git("log", "--format=%ct", "--reverse", f"-S{_quote(test)}", "--", str(FILE)).splitlines()
    return datetime.fromtimestamp(int(dates[0]) if dates else time.time(), timezone.utc)


def _read_before(path: str, base: str) -> str:
    """Return the text of a file before the change, from where it lay then; empty if there was none."""
    moves = git("diff", "--name-status", "--find-renames", "--diff-filter=R", base, "HEAD").splitlines()
    earlier = {new: old for _, old, new in (line.split("\t") for line in moves)}
    try:
        return git("show", f"{base}:{earlier.get(path, path)}")
    except subprocess.CalledProcessError:
        return ""


def _find_function(text: str, name: str) -> str:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [each for each in ast.walk(ast.parse(text)) if isinstance(each, functions) and each.name == name]
    return "\n".join(map(ast.dump, found))


def _quote(text: str) -> str:
    """Return a text as TOML has it."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
