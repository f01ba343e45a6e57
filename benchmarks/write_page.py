"""Writes the tables of docs/benchmarks.md from the JSON files of the benchmarks: the end of `make figures`.

A table stands between two lines, which no reader of the page sees:

    <!-- table NAME -->
    <!-- end of table NAME -->

Each script has a `PageTable` for each of its tables. A table whose JSON file is missing stays as it is.
"""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from page_tables import PageTable

from roost.bench import interval
from roost.bench.compare import read
from roost.scheduler.errors import ConfigError

ROOT = Path(__file__).parents[1]
_MARKER = re.compile(r"<!-- (end of )?table (\S+) -->")
_WIDTH = 115
_PACKAGES = ("ipykernel", "jupyter_client")
_WORST_FIRST = ("missed", "open", "kept")


class PageError(Exception):
    """A marker of the page is missing, unclosed, unknown or there twice. The text is one sentence for people."""


def read_tables() -> list[PageTable]:
    """Return the tables of all scripts in this folder. No script imports a cluster manager until it measures."""
    scripts = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path != Path(__file__))
    values = [value for name in scripts for value in vars(import_module(name)).values()]
    return [value for value in values if isinstance(value, PageTable)]


def find_tables(page: str) -> dict[str, tuple[int, int]]:
    """Return each table's range of lines by its name: the first line, and the line after the last.

    Raises `PageError`.
    """
    found: dict[str, tuple[int, int]] = {}
    opened, began = "", 0
    for number, line in enumerate(page.splitlines()):
        if not (match := _MARKER.fullmatch(line.strip())):
            continue
        is_end, name = bool(match[1]), match[2]
        if not is_end and opened:
            raise PageError(
                f"Line {number + 1} begins the table {name}, but the table {opened} has no end yet."
            )
        if not is_end and name in found:
            raise PageError(f"Line {number + 1} begins the table {name} a second time.")
        if is_end and name != opened:
            raise PageError(f"Line {number + 1} ends the table {name}, which has not begun.")
        if is_end:
            found[name] = (began, number)
        opened, began = ("", 0) if is_end else (name, number + 1)
    if opened:
        raise PageError(f"The table {opened} has no end: add the line <!-- end of table {opened} -->.")
    return found


def fill(page: str, tables: Iterable[PageTable], results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page with new tables, from each benchmark's JSON in `results`. Raise `PageError` for wrong markers."""
    tables = list(tables)
    places = find_tables(page)
    if missing := [table.name for table in tables if table.name not in places]:
        name = missing[0]
        raise PageError(
            f"The page has no table {name}: add the lines <!-- table {name} --> and <!-- end of table {name} -->."
        )
    if unknown := places.keys() - {table.name for table in tables}:
        raise PageError(f"The page has the table {min(unknown)}, which no script has.")
    lines = page.splitlines()
    for table in sorted(tables, key=lambda table: places[table.name], reverse=True):
        if table.source in results:
            begin, end = places[table.name]
            lines[begin:end] = write_table(table, results[table.source])
    return "\n".join(lines) + "\n"


def write_table(table: PageTable, result: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table with the time and machine of its measurement, notes and picture."""
    figures = result["figures"]
    wanted = {label: _list_bounds(names, result) for label, names in table.figures.items()}
    has_wanted = any(wanted.values())
    heads = [table.corner, *table.columns, "unit", *table.ratios]
    rows = [[*heads, *(["wanted"] if has_wanted else []), "n"]]
    for label, names in table.figures.items():
        known = [figures.get(name) for name in names]
        present = [figure for figure in known if figure]
        if not present:
            print(f"{table.source}.json has no figure for the row {label!r} of the table {table.name}.")
            continue
        units = list(dict.fromkeys(figure["unit"] for figure in present))
        by_name = dict(zip(table.columns, names, strict=True))
        ratios = [
            _write_ratio(result, by_name[above], by_name[below]) for above, below in table.ratios.values()
        ]
        counts = dict.fromkeys(str(figure["n"]) for figure in present)
        row = [label, *map(_write_figure, known), ", ".join(units), *ratios]
        rows.append([*row, *([wanted[label] or "–"] if has_wanted else []), ", ".join(counts)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    lines += ["", *textwrap.wrap(describe(table, result), _WIDTH, break_on_hyphens=False)]
    if table.name != table.source:  # the first table has the notes and the picture
        return lines
    if notes := list(dict.fromkeys([*_list_failures(result), *result["notes"]])):
        lines.append("")
        for note in notes:
            lines += textwrap.wrap(f"- {note}", _WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    if table.has_picture:
        lines += ["", f"![Each measurement of {table.source}.py](figures/{table.source}.png)"]
    return lines


def describe(table: PageTable, result: Mapping[str, Any]) -> str:
    """Return sentences with the date, machine and versions; for a benchmark's first table, with its missed bounds."""
    machine, versions = result["machine"], result["versions"]
    memory = f"{machine['memory_bytes'] / (1 << 30):.0f} GiB"
    where = f"{machine['cpu']}, {machine['cores']} cores, {memory}, {machine['system']} {machine['kernel']}"
    packages = [name for name in (*_PACKAGES, *table.packages) if name in versions]
    used = ", ".join(["Python " + versions["python"], *(f"{name} {versions[name]}" for name in packages)])
    text = f"Measured by `{table.source}.py` on {result['at'][:10]}: {where}; {used}."
    claims = result["claims"] if table.name == table.source else []
    for verdict, title in (("missed", "Missed bounds"), ("open", "Bounds that more rounds would decide")):
        if found := [claim for claim in claims if claim["verdict"] == verdict]:
            listed = "; ".join(map(_write_claim, found))
            text += f" {title}, {len(found)} of {len(claims)}: {listed}."
    if claims and all(claim["verdict"] == "kept" for claim in claims):
        text += " All bounds were kept."
    return text


def _list_bounds(names: Sequence[str], result: Mapping[str, Any]) -> str:
    """Return the bounds for these figures and for their ratios; empty if there are none."""
    units = {name: result["figures"][name]["unit"] for name in names if name in result["figures"]}
    for name, ratio in result["ratios"].items():
        if {ratio["numerator"], ratio["denominator"]} <= units.keys():
            units[name] = "×"
    bounds: dict[str, set[str]] = {}
    for claim in result["claims"]:
        if claim["text"] in units:
            bound = f"{_write_bound(claim)} {units[claim['text']]}".strip()
            bounds.setdefault(bound, set()).add(claim["verdict"])
    worst = {bound: next(each for each in _WORST_FIRST if each in found) for bound, found in bounds.items()}
    return ", ".join(
        bound if verdict == "kept" else f"{bound} ({verdict})" for bound, verdict in worst.items()
    )


def _list_failures(result: Mapping[str, Any]) -> list[str]:
    return [f"Kernels of {side} that did not answer: {count}." for side, count in result["failures"].items()]


def _write_bound(claim: Mapping[str, Any]) -> str:
    if claim["at_most"] is not None:
        return f"≤ {round(claim['at_most'], 2):,g}"
    return f"≥ {round(claim['at_least'], 2):,g}"


def _write_figure(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "–"
    median, low, high = (_number(figure[key], figure["unit"]) for key in ("median", "min", "max"))
    return median if low == high else f"{median} ({low}–{high})"


def _write_claim(claim: Mapping[str, Any]) -> str:
    spread = ""
    if claim["interval"]:
        spread = f" [{round(claim['interval']['low'], 3):,g}, {round(claim['interval']['high'], 3):,g}]"
    return f"{claim['text']} is {round(claim['value'], 3):,g}{spread} ({_write_bound(claim)})"


def _write_ratio(result: Mapping[str, Any], above: str, below: str) -> str:
    """Return the ratio of two figures' medians, with its interval if they were measured in the same rounds."""
    figures, samples = result["figures"], result["samples"]
    if above not in figures or below not in figures or not figures[below]["median"]:
        return "–"
    text = _ratio(figures[above]["median"] / figures[below]["median"])
    if len(samples[above]) != len(samples[below]):
        return text
    found = interval.of_ratio(samples[above], samples[below])
    return text if found is None else f"{text} [{_ratio(found.low)}, {_ratio(found.high)}]"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _number(value: float, unit: str = "") -> str:
    """Return a number with about three digits, and a percentage with two decimals."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    if unit == "%":
        return f"{value:.2f}"
    return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--figures", type=Path, default=ROOT / "docs/figures", help="folder of the JSON files"
    )
    options.add_argument("--page", type=Path, default=ROOT / "docs/benchmarks.md", help="page to write")
    arguments = options.parse_args()
    tables = read_tables()
    results: dict[str, Mapping[str, Any]] = {}
    try:
        for source in dict.fromkeys(table.source for table in tables):
            file = arguments.figures / f"{source}.json"
            if file.exists():
                results[source] = read(str(file))
            else:
                names = ", ".join(table.name for table in tables if table.source == source)
                print(f"There is no {file.name}, so these tables stay as they are: {names}.")
        page = fill(arguments.page.read_text(encoding="utf-8"), tables, results)
    except ConfigError as problem:
        print(problem, file=sys.stderr)
        return 1
    except OSError as problem:
        print(f"{problem.filename} cannot be read: {problem.strerror}.", file=sys.stderr)
        return 1
    except PageError as problem:
        print(f"{arguments.page}: {problem}", file=sys.stderr)
        return 1
    arguments.page.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
