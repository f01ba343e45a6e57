"""The decisions in the service's log: their lines, what the lines leave out, and how a benchmark reads them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.fakes.scheduler import fake_world
from roost.bench.trace_files import read_trace
from roost.launchers.protocol.messages import Connection, KernelProcess, Owner
from roost.launchers.protocol.process_log import QuietFormatter
from roost.placement.model import Request
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import Event, Kernel
from roost.scheduler.service import decision_log
from roost.scheduler.service.decision_log import log_decision

KERNEL = Kernel(
    id="k",
    launch_id="1",
    state="starting",
    owner=Owner(user="ada", application="lab"),
    request=Request(
        gpus=0.5, memory_bytes=1 << 30, gpu_models=("A100",), gpu_memory_bytes=40 << 30, policy="pack"
    ),
    node_id="a",
    device_ids=("GPU-1",),
    process=KernelProcess(
        kernel_id="k",
        launch_id="1",
        lease_id="",
        pid=7,
        process_started_at=0.0,
        how="exec",
        connection=Connection(key="s3cret"),
        launched_at=0.0,
    ),
    created_at=1_000_000.0,
    timing_ms={"queued": 1500.0, "placed": 1.0},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture(autouse=True)
def service_log(file: Path, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Write the log as a service does."""
    handler = logging.FileHandler(file)
    handler.setFormatter(QuietFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    caplog.set_level(logging.INFO)
    decision_log.log.addHandler(handler)
    yield
    decision_log.log.removeHandler(handler)
    handler.close()


async def test_a_refusal_and_an_end_each_write_a_line(tmp_path: Path, file: Path) -> None:
    async with fake_world(tmp_path / "world", gpus=1) as w:
        w.scheduler.events.listen(log_decision)
        await w.start("one", gpus=0.5, memory_bytes=1 << 20)
        assert file.read_text() == ""
        with pytest.raises(RoostError):
            await w.start("two", gpus=4)
        await w.scheduler.stop("one", 0.0)
    refused, ended = file.read_text().splitlines()
    assert "kernel=two decided" in refused
    assert "kernel=one decided" in ended
    assert "hush" not in refused + ended
    one, two = read_trace(str(file))
    assert (one.request, two.request) == (Request(gpus=0.5, memory_bytes=1 << 20), Request(gpus=4))
    assert one.duration_s is not None
    assert two.duration_s is None
    assert one.at_s <= two.at_s


def test_a_kernel_runs_from_its_placement_to_its_end(file: Path) -> None:
    log_decision(Event(kind="released", at=1_000_060.5, kernel=KERNEL, detail="stopped"))
    (arrival,) = read_trace(str(file))
    assert (arrival.at_s, arrival.duration_s) == (1_000_000.0, 59.0)
    assert (arrival.request.gpus, arrival.request.gpu_models) == (0.5, ("A100",))
    assert arrival.request.gpu_memory_bytes == 40 << 30


def test_a_line_has_no_secrets_and_no_reason(file: Path) -> None:
    detail = "/home/ada/.venv/bin/python is not there; its last line: password is hush"
    log_decision(Event(kind="released", at=1_000_060.5, kernel=KERNEL, detail=detail))
    text = file.read_text()
    assert "s3cret" not in text
    assert "hush" not in text
    assert "/home" not in text


def test_other_events_write_no_line(file: Path) -> None:
    for kind in ("queued", "placed", "leased", "conflict", "failed", "nodes"):
        log_decision(Event(kind=kind, at=1.0, kernel=None if kind == "nodes" else KERNEL))
    assert file.read_text() == ""
