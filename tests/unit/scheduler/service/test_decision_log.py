"""The decision log: its lines, its privacy, and a full disk."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from kit.fakes.scheduler import fake_world
from roost.launchers.protocol.messages import Connection, KernelProcess, Owner
from roost.placement.model import Request
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import Event, Kernel
from roost.scheduler.service.decision_log import DecisionLog, older_file

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
)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "decisions.jsonl").read_text().splitlines()]


def released(detail: str = "stopped", kernel: Kernel = KERNEL) -> Event:
    return Event(kind="released", at=1_000_060.5, kernel=kernel, detail=detail)


async def test_a_placement_and_an_end_each_write_a_line(tmp_path: Path) -> None:
    async with fake_world(tmp_path, gpus=1) as w:
        log = DecisionLog(tmp_path)
        w.scheduler.events.listen(log)
        await w.start("one", gpus=0.5, memory_bytes=1 << 20)
        with pytest.raises(RoostError):
            await w.start("two", gpus=4)
        await w.scheduler.stop("one", 0.0)
        log.close()
    placed, refused, ended = lines(tmp_path)
    assert "hush" not in (tmp_path / "decisions.jsonl").read_text()
    assert (placed["what"], placed["kernel"], placed["node"], placed["devices"]) == (
        "placed",
        "one",
        "here",
        ["0"],
    )
    assert placed["policy"] == "balanced"
    assert placed["request"]["gpus"] == 0.5
    assert placed["reason"].startswith("here ranks first")
    assert (refused["what"], refused["kernel"], refused["node"]) == ("refused", "two", "")
    assert "4 GPUs" in refused["reason"]
    assert (ended["what"], ended["kernel"], ended["reason"]) == ("ended", "one", "stopped")
    assert placed["asked_at"] <= placed["at"] <= ended["at"]


def test_a_placement_without_a_lease_writes_no_line(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path)
    for kind in ("queued", "placed", "conflict", "nodes"):
        log(Event(kind=kind, at=1.0, kernel=None if kind == "nodes" else KERNEL))
    log.close()
    assert not (tmp_path / "decisions.jsonl").exists()


def test_what_a_kernel_wrote_is_left_out(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path)
    log(released("the kernel exited with code 1 while it was starting; its last line: password is hush"))
    log.close()
    (line,) = lines(tmp_path)
    assert line["reason"] == "the kernel exited with code 1 while it was starting"


def test_the_file_is_private_and_has_no_secrets(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path)
    log(released("/home/ada/.venv/bin/python is not there; see ~/x.log, 2 GPU/s are left"))
    log.close()
    text = (tmp_path / "decisions.jsonl").read_text()
    assert stat.S_IMODE((tmp_path / "decisions.jsonl").stat().st_mode) == 0o600
    assert "s3cret" not in text
    (line,) = lines(tmp_path)
    assert line["reason"] == "… is not there; see …, 2 GPU/s are left"
    assert line["request"]["gpu_memory_bytes"] == 40 << 30
    assert line["at"] == "1970-01-12T13:47:40.500+00:00"
    assert set(line) == {"at", "what", "kernel", "asked_at", "user", "policy", "node", "request", "reason"}


def test_the_file_is_rotated_once_and_continued_by_a_new_service(tmp_path: Path) -> None:
    for _ in range(2):
        log = DecisionLog(tmp_path, max_bytes=2_000)
        for number in range(20):
            log(released(f"number {number}"))
        log.close()
    path = tmp_path / "decisions.jsonl"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["decisions.jsonl", "decisions.jsonl.old"]
    assert max(path.stat().st_size, older_file(path).stat().st_size) <= 2_000
    assert lines(tmp_path)[-1]["reason"] == "number 19"


def test_a_full_disk_only_loses_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = DecisionLog(tmp_path)
    log(released("before"))
    write = os.write

    def short(descriptor: int, data: bytes) -> int:
        return write(descriptor, data[:7])

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for failing in (short, full):
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", failing)
            log(released("lost"))
    log(released("after"))
    log.close()
    assert [line["reason"] for line in lines(tmp_path)] == ["before", "after"]
    assert len(caplog.records) == 1


def test_a_removed_folder_only_loses_lines(tmp_path: Path) -> None:
    log = DecisionLog(tmp_path / "gone")
    log(released())
    log.close()
