"""The comparison with Gateway Provisioners, without that package and without kernels."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import against_gateway
import pytest
from claims import Report

from roost.bench import starts
from roost.bench.sides import Side


def test_a_missing_package_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(against_gateway, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["against_gateway.py"])
    assert against_gateway.main() == against_gateway.SKIPPED
    said = capsys.readouterr().err
    assert "pip install gateway_provisioners" in said
    assert said.count("\n") == 1


def test_only_one_side_polls_faster(tmp_path: Path) -> None:
    sides = {side.name: side for side in against_gateway.make_sides(tmp_path)}
    assert [side.is_roost for side in sides.values()] == [True, False, False, False]
    gateway, fast = (sides[name] for name in against_gateway.AT_MOST)
    assert fast.kernelspec == gateway.kernelspec
    assert {**gateway.variables, "GP_POLL_INTERVAL": "0.05"} == fast.variables
    assert "GP_POLL_INTERVAL" not in gateway.variables


async def test_every_claim_and_every_row_has_its_figure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def measure_lives(report: Report, sides: Sequence[Side], *, rounds: int, restarts: bool) -> None:
        assert not restarts
        for stage in (each for each in starts.STAGES if each != "restart"):
            for number, side in enumerate(sides, 1):
                report.add(f"{stage}/{side.name}", 100.0 * number, "ms")
            report.compare(stage, [side.name for side in sides])

    monkeypatch.setattr(starts, "measure_lives", measure_lives)
    report = Report("start")
    await against_gateway.measure(report, against_gateway.make_sides(tmp_path), rounds=1)
    assert [(claim.at_most, claim.value) for claim in report.claims] == [(0.08, 1 / 3), (0.12, 1 / 4)]
    figures = against_gateway.TABLE.figures.values()
    assert {name for names in figures for name in names} == set(report.samples)
