"""The tables of docs/benchmarks.md: a benchmark's JSON in, a table out; and pages with wrong markers."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import write_page
from claims import Report
from page_tables import PageTable

ROOT = Path(__file__).parents[3]
STARTS = PageTable(
    name="start",
    columns={"plain Jupyter": "{}/plain", "roost": "{}/roost"},
    rows={"start": "start", "stop": "stop", "first": ["", "first/roost"]},
    ratios={"roost ÷ plain": ("roost", "plain Jupyter")},
    packages=("pyzmq",),
)
FIGURE = {"min": 1.0, "max": 1000.0, "n": 3, "unit": "ms"}
PAGE = "# Page\n\n<!-- table start -->\nold\n<!-- end of table start -->\nprose\n"


def result() -> Mapping[str, Any]:
    """Return the JSON of a run with one claim that holds and two that fail."""
    report = Report("start")
    for plain, roost in ((200.0, 31.25), (190.0, 38.0), (2100.0, 30.0)):
        report.add("start/plain", plain, "ms")
        report.add("start/roost", roost, "ms")
    report.add("stop/plain", 0.25, "ms")
    report.add("stop/roost", 0.5, "ms")
    report.add("first/roost", 650.4, "ms")
    report.ratio("start: roost ÷ plain", "start/roost", "start/plain")
    report.ratio("stop: roost ÷ plain", "stop/roost", "stop/plain")
    report.claim("start: roost ÷ plain", at_most=0.2)
    report.claim("stop: roost ÷ plain", at_most=1.0)
    report.claim("first/roost", at_most=600.0)
    report.notes.append("The machine was busy.")
    report.failures["plain"] = 2
    found = json.loads(json.dumps(report.to_dict()))
    found["at"] = "2026-11-24T10:00:00+00:00"
    found["machine"] |= {
        "cpu": "CPU X",
        "cores": 2,
        "memory_bytes": 8 << 30,
        "system": "Linux",
        "kernel": "6",
    }
    found["versions"] = {"python": "3.11.7", "ipykernel": "7.4.0", "pyzmq": "27.0", "ray": "2.60"}
    return found  # type: ignore[no-any-return]


def test_a_result_becomes_a_table() -> None:
    written = write_page.fill(PAGE, [STARTS], {"start": result()})
    assert written.startswith("# Page\n\n<!-- table start -->\n|")
    assert written.endswith("\n<!-- end of table start -->\nprose\n")
    assert "old" not in written
    rows = [line for line in written.splitlines() if line.startswith("|")]
    assert rows == [
        "|  | plain Jupyter | roost | unit | roost ÷ plain | wanted | n |",
        "|---|---|---|---|---|---|---|",
        "| start | 200 (190–2,100) | 31.2 (30–38) | ms | 0.16 | ≤ 0.2 × | 3 |",
        "| stop | 0.25 | 0.5 | ms | 2.00 | ≤ 1 × (missed) | 1 |",
        "| first | – | 650 | ms | – | ≤ 600 ms (missed) | 1 |",
    ]
    prose = " ".join(written.split())
    assert "`start.py` on 2026-11-24: CPU X, 2 cores, 8 GiB, Linux 6; Python 3.11.7, ipykernel 7.4.0" in prose
    assert "pyzmq 27.0." in prose
    assert "Missed bounds, 2 of 3: stop: roost ÷ plain is 2 (≤ 1); first/roost is 650.4 (≤ 600)." in prose
    assert "- Kernels of plain that did not answer: 2. - The machine was busy. ![" in prose
    assert "(figures/start.png)" in prose


def test_a_small_ratio_keeps_two_digits() -> None:
    figures = {"start/plain": {**FIGURE, "median": 1000.0}, "start/roost": {**FIGURE, "median": 2.6}}
    (row,) = [
        line
        for line in write_page.write_table(STARTS, {**result(), "figures": figures})
        if line.startswith("| start |")
    ]
    assert "| 0.0026 |" in row


def test_a_second_run_replaces_the_table() -> None:
    once = write_page.fill(PAGE, [STARTS], {"start": result()})
    assert write_page.fill(once, [STARTS], {"start": result()}) == once


def test_a_row_without_figures_is_left_out_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {name: figure for name, figure in result()["figures"].items() if name != "first/roost"}
    written = write_page.fill(PAGE, [STARTS], {"start": {**result(), "figures": figures}})
    assert "| first |" not in written
    assert capsys.readouterr().out == "start.json has no figure for the row 'first' of the table start.\n"


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("prose\n", "The page has no table start: add the lines"),
        ("<!-- table start -->\n", "The table start has no end: add the line <!-- end of table start -->."),
        ("<!-- end of table start -->\n", "Line 1 ends the table start, which has not begun."),
        ("<!-- table a -->\n" + PAGE, "Line 4 begins the table start, but the table a has no end yet."),
        (PAGE + PAGE, "Line 9 begins the table start a second time."),
        (
            PAGE.replace("start", "stop") + PAGE,
            "The page has the table stop, which no script has.",
        ),
    ],
)
def test_wrong_markers_are_one_sentence(page: str, problem: str) -> None:
    with pytest.raises(write_page.PageError) as caught:
        write_page.fill(page, [STARTS], {})
    assert str(caught.value).startswith(problem)


def run(monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    page = folder / "page.md"
    monkeypatch.setattr(sys, "argv", ["write_page.py", "--figures", str(folder), "--page", str(page)])
    return write_page.main()


def test_a_table_without_a_result_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(write_page, "read_tables", lambda: [STARTS])
    (tmp_path / "page.md").write_text(PAGE)
    assert run(monkeypatch, tmp_path) == 0
    assert (tmp_path / "page.md").read_text() == PAGE
    assert capsys.readouterr().out == "There is no start.json, so these tables stay as they are: start.\n"


@pytest.mark.parametrize(
    ("page", "result_", "problem"),
    [(PAGE, "{", "start.json is not JSON"), ("prose\n", "", "page.md: The page has no table start")],
)
def test_a_page_that_cannot_be_written_stays(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    page: str,
    result_: str,
    problem: str,
) -> None:
    monkeypatch.setattr(write_page, "read_tables", lambda: [STARTS])
    (tmp_path / "page.md").write_text(page)
    (tmp_path / "start.json").write_text(result_ or json.dumps(result()))
    assert run(monkeypatch, tmp_path) == 1
    assert (tmp_path / "page.md").read_text() == page
    said = capsys.readouterr().err
    assert problem in said
    assert said.count("\n") == 1


def test_the_page_has_every_table_and_make_runs_every_benchmark() -> None:
    page, tables = (ROOT / "docs/benchmarks.md").read_text(), write_page.read_tables()
    assert write_page.fill(page, tables, {}) == page
    pattern = re.compile(r"^BENCHMARKS := ((?:.*\\\n)*.*)$", re.MULTILINE)
    (listed,) = pattern.findall((ROOT / "Makefile").read_text())
    benchmarks = listed.replace("\\", "").split()
    assert {table.source for table in tables} == set(benchmarks)
    for path in (ROOT / "benchmarks").glob("*.py"):
        has_results = "parser(__doc__)" in path.read_text() or "run_cluster(" in path.read_text()
        assert (path.stem in benchmarks) == (has_results and path.stem != "on_cluster")
    for table in tables:
        assert {len(names) for names in table.figures.values()} == {len(table.columns)}
        assert {column for pair in table.ratios.values() for column in pair} <= table.columns.keys()
