"""The pictures of a benchmark's results."""

from __future__ import annotations

from pathlib import Path

import pytest
from plots import arrange, draw

from roost.bench.report import Report

pytest.importorskip("matplotlib", reason="matplotlib draws the pictures: pip install '.[test]'")


def test_the_sides_of_a_stage_stand_beside_each_other() -> None:
    names = ["start/plain", "stop/plain", "start/roost", "memory"]
    panel = arrange(names, ["roost", "", "plain"])
    assert [[name for _, name in rows] for rows in panel] == [
        ["start/roost", "start/plain"],
        ["stop/plain"],
        ["memory"],
    ]
    heights = [row for rows in panel for row, _ in rows]
    assert heights == sorted(heights, reverse=True)
    assert min(heights) == 0


@pytest.mark.parametrize(
    "samples", [{}, {"start/roost": [30.0]}, {"growth": [0.0], "start/plain": [1e5, 0.5]}]
)
def test_all_results_can_be_drawn(tmp_path: Path, samples: dict[str, list[float]]) -> None:
    report = Report("start")
    for name, values in samples.items():
        for value in values:
            report.add(name, value, "ms")
    draw(report.to_dict(), tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").exists() == bool(samples)


def test_the_picture_names_its_stages_its_sides_and_its_machine(tmp_path: Path) -> None:
    report = Report("start")
    for side, value in (("plain", 300.0), ("roost", 31.5)):
        report.add(f"first reply/{side}", value, "ms")
    report.capacity["node-1"] = {"started": 2, "holds": {"idle": 412}}
    draw(report.to_dict(), tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    document = report.to_dict()
    for text in (
        "first reply",
        "plain",
        "roost",
        "31.5",
        "300.0",
        f"Python {document['versions']['python']}",
    ):  # type: ignore[index]
        assert text in drawn, text
    assert "<!-- 412 -->" in (tmp_path / "plot-capacity.svg").read_text()
