"""Two services for one cluster, as `roost doctor` reports them."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from roost.scheduler.cli.commands import build_parser
from roost.scheduler.cli.options import scheduler_options
from roost.scheduler.cli.services import find_twins
from roost.scheduler.client import cluster_record
from roost.scheduler.client.advice import write_command
from roost.scheduler.client.client import Client
from roost.scheduler.client.cluster_record import ClusterRecord, write_record

HEAD = "192.0.2.7:6379"


@pytest.fixture
def twin(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterRecord:
    """Return the record of a second service for the cluster of `scheduler-ray`. Both seem to run."""
    monkeypatch.setattr(cluster_record, "is_alive", lambda folder: (folder / "ready.json").exists())
    record = ClusterRecord(backend="ray", cluster_id="c", places=(HEAD,), options={"address": HEAD})
    own = ClusterRecord(backend="ray", cluster_id="c", places=("192.0.2.8:6379",), options={})
    for name, each in (("scheduler-ray", own), ("scheduler-ray-1", record)):
        (runtime_dir / name).mkdir(mode=0o700)
        (runtime_dir / name / "ready.json").write_text(json.dumps({"pid": os.getpid()}))
        write_record(runtime_dir / name, each)
    return record


def test_doctor_names_a_second_service_and_how_to_join_them(twin: ClusterRecord) -> None:
    (finding,) = find_twins(Client("ray"))
    assert finding["level"] == "warning"
    assert "scheduler-ray," in finding["what"]
    assert "scheduler-ray-1 (pid" in finding["what"]
    option = f"--backend ray --backend-option address={HEAD}"
    assert f"`roost kernels {option}` lists them" in finding["do"]
    assert f"`roost restart-service {option}` joins both" in finding["do"]


def test_services_with_other_options_are_two_by_intent(twin: ClusterRecord, runtime_dir: Path) -> None:
    write_record(runtime_dir / "scheduler-ray-1", replace(twin, options={**twin.options, "python": "x"}))
    (finding,) = find_twins(Client("ray"))
    assert "give both the same options" in finding["do"]


def test_one_service_is_no_finding(runtime_dir: Path) -> None:
    assert find_twins(Client("ray")) == []
    assert find_twins(Client("local")) == []


def test_a_written_command_is_one_that_can_be_typed() -> None:
    options = {"address": "tcp://head:8786", "python": "/a b/python", "cpus": 2, "fork": False}
    words = shlex.split(write_command("kernels", "dask", options))
    arguments = build_parser().parse_args(words[1:])
    assert arguments.backend == "dask"
    assert scheduler_options(arguments) == options


def test_a_variable_that_would_name_another_service_is_left_out(
    twin: ClusterRecord, runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record(runtime_dir / "scheduler-ray-1", replace(twin, options={}))
    monkeypatch.setenv("RAY_ADDRESS", HEAD)
    (finding,) = find_twins(Client("ray"))
    assert "`env -u RAY_ADDRESS roost kernels --backend ray`" in finding["do"]
