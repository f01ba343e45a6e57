"""The preparation of a server's first kernels, with a fake service."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from traitlets.config import Config

from kit.fakes.service import FakeService
from kit.jupyter.kernel_managers import manager, the_start
from kit.jupyter.kernelspecs import kernelspecs
from roost.provisioners.server_extension.warm_up import start_warm_up
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.errors import BackendUnavailable, NoNodeNow
from roost.testing.deadlines import allow_s

LOG = logging.getLogger("server")
PLAIN = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}


def warm_up(kernelspecs: KernelSpecManager) -> None:
    """Run the warm-up of a server whose default kernel is `roosted`."""
    kernel_manager = SimpleNamespace(
        kernel_spec_manager=kernelspecs, config=Config(), default_kernel_name="roosted"
    )
    thread = start_warm_up(kernel_manager, LOG)
    thread.join(allow_s(60))
    assert not thread.is_alive()


async def test_a_zygote_serves_the_first_kernel(service: FakeService, tmp_path: Path) -> None:
    kernelspecs(tmp_path, "another", config={"gpus": 1}, env={"OMP_NUM_THREADS": "1"})
    kernelspecs(tmp_path, "plain", metadata=PLAIN)
    warm_up(kernelspecs(tmp_path))
    warmed, another = service.called("warm")
    assert another.env["OMP_NUM_THREADS"] == "1"
    assert another.request.gpus == 1, "its zygote is needed on the node where its kernel goes"
    km = manager(tmp_path)
    await km.start_kernel()
    start = the_start(service)
    assert tuple(warmed.argv) == start.argv
    assert {**warmed.env, "KERNEL_ID": ""} == {**start.env, "KERNEL_ID": ""}
    await km.shutdown_kernel(now=True)


def test_a_cluster_that_fails_gives_one_line(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service.answers["warm"] = BackendUnavailable("The cluster is away.")
    kernelspecs(tmp_path, "another")
    warm_up(kernelspecs(tmp_path))
    assert [record.message for record in caplog.records] == [
        "roost: kernels of roosted are not prepared: The cluster is away."
    ]
    assert len(service.called("warm")) == 1


def test_a_cluster_without_room_is_no_problem_of_the_server(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service.answers["warm"] = NoNodeNow("All GPUs are held.")
    kernelspecs(tmp_path, "another")
    warm_up(kernelspecs(tmp_path))
    assert not caplog.records
    assert len(service.called("warm")) == 2, "the others are prepared"


def test_pods_are_not_asked_for(
    service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pods = replace(get_spec("local"), has_agent_per_kernel=True)
    monkeypatch.setattr("roost.provisioners.server_extension.warm_up.get_spec", lambda _: pods)
    warm_up(kernelspecs(tmp_path))
    assert {op for op, _ in service.calls} == {"hello", "subscribe"}


def test_a_wrong_kernelspec_does_not_stop_the_others(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kernelspecs(tmp_path, "another")
    warm_up(kernelspecs(tmp_path, config={"gpus": "many"}))
    assert len(service.called("warm")) == 1
    assert len(caplog.records) == 1
    assert "roosted are not prepared" in caplog.text


def test_few_kernelspecs_are_prepared(service: FakeService, tmp_path: Path) -> None:
    kernelspecs(tmp_path, "another", config={"fork": False})  # it needs no zygote, and takes no place
    for number in range(9):
        specs = kernelspecs(tmp_path, f"spec{number}")
    warm_up(specs)
    assert len(service.called("warm")) == 4


def test_a_malformed_kernelspec_is_one_sentence(
    service: FakeService, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = {"kernel_provisioner": {"provisioner_name": "roost", "config": [1]}}
    kernelspecs(tmp_path, "broken", metadata=metadata)
    warm_up(kernelspecs(tmp_path))
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("roost: kernels of broken are not prepared: ")
    assert "config" in line
    assert "**" not in line
    assert len(service.called("warm")) == 1, "the other one is prepared"
