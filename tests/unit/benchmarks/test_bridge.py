"""The benchmark of the bridge, without launchers and kernels."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import bridge
import pytest
from claims import Report


def test_missing_launchers_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bridge, "why_not", lambda: "pip cannot download them here")
    monkeypatch.setattr(sys, "argv", ["bridge.py"])
    assert bridge.main() == bridge.SKIPPED
    assert capsys.readouterr().err == "pip cannot download them here\n"


@pytest.mark.parametrize("kind", bridge.KINDS)
def test_the_kernelspec_of_a_launcher_begins_with_the_bridge(tmp_path: Path, kind: str) -> None:
    bridge.write_bridge(tmp_path / kind, kind)
    document = json.loads((tmp_path / kind / "kernel.json").read_text())
    assert document["argv"][1:4] == ["-m", "roost.launchers.bridge", "{connection_file}"]
    assert "{public_key}" in document["argv"]
    assert document["metadata"]["kernel_provisioner"]["provisioner_name"] == "roost"


async def test_a_slow_stop_misses_the_claim(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_life(side: bridge.Side) -> dict[str, float]:
        return {"stop": bridge.STOP_MS + (side.name == "gateway")}

    monkeypatch.setattr(bridge, "run_life", run_life)
    report = Report("bridge")
    await bridge.measure(report, 1)
    assert [claim.verdict for claim in report.claims] == ["kept", "missed"]
    assert {f"stop/{side.name}" for side in bridge.SIDES} == set(report.samples)


def test_every_figure_of_the_table_has_its_side() -> None:
    sides = {name.partition("/")[2] for names in bridge.TABLE.figures.values() for name in names}
    assert sides == {side.name for side in bridge.SIDES}
