"""How tables, amounts and ages look, with a stub client."""

from __future__ import annotations

import pytest

from kit.fakes.client import StubClient, build_kernel, run
from roost.placement import Request
from roost.scheduler.cli import tables


def test_piped_tables_are_not_cut(
    client: StubClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS")
    client.known = [build_kernel("cccc", state="queued", position=1, waits_for="word " * 60)]
    _, out, _ = run(capsys, "kernels", "--pending")
    assert len(out.splitlines()) == 2


def test_the_request_names_the_gpus_model_and_memory() -> None:
    request = Request(gpus=2, gpu_models=("A100",), gpu_memory_bytes=40 << 30, cpus=0.125, near={"rack": "7"})
    shown = "2 GPUs of model A100 with 40 GiB each, 0.125 CPU, near rack=7"
    assert tables.format_request(request) == shown
    assert tables.format_request(Request()) == "-"


def test_ids_are_cut_where_they_differ() -> None:
    assert tables.shorten_ids(["abcdefghij", "abcdefghik", "x"]) == {
        "abcdefghij": "abcdefghij",
        "abcdefghik": "abcdefghik",
        "x": "x",
    }
