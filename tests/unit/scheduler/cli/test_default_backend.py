"""Which backend a command asks if its user has named none."""

from __future__ import annotations

from pathlib import Path

import pytest

from roost.scheduler.cli.commands import build_parser
from roost.scheduler.cli.main import main
from roost.scheduler.cli.options import BACKEND_VARIABLE, choose_backend
from roost.scheduler.client import running_services
from roost.scheduler.client.running_services import RunningService


def a_service(backend: str, *, is_named: bool = False) -> RunningService:
    return RunningService(folder=Path("/r"), pid=1, backend=backend, address="head:6379", is_named=is_named)


@pytest.mark.parametrize(
    ("words", "variable", "services", "found"),
    [
        ("kernels", "", [], "local"),
        ("kernels", "ray", [a_service("dask")], "ray"),
        ("kernels --backend ssh", "ray", [], "ssh"),
        ("kernels", "", [a_service("ray")], "ray"),
        ("nodes", "", [a_service("ray", is_named=True)], "ray address=head:6379"),
        ("kernels", "", [a_service("ray"), a_service("local")], "local"),
        ("kernels --backend-option cpus=2", "", [a_service("ray")], "local cpus=2"),
        ("doctor", "", [a_service("dask")], "dask"),
        ("kernelspec install --from python3", "", [a_service("ray")], "local"),
        ("kernelspec install --from python3", "ray", [], "ray"),
    ],
)
def test_the_variable_then_the_only_service_then_this_machine(
    monkeypatch: pytest.MonkeyPatch, words: str, variable: str, services: list[RunningService], found: str
) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, variable)
    monkeypatch.setattr(running_services, "find_services", lambda: services)
    arguments = build_parser().parse_args(words.split())
    choose_backend(arguments)
    assert " ".join([arguments.backend, *arguments.backend_option]) == found


def test_an_unknown_name_in_the_variable_is_one_sentence(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(BACKEND_VARIABLE, "rya")
    assert main(["kernels"]) == 2
    assert "rya" in capsys.readouterr().err


def test_no_service_starts_to_say_that_there_are_no_kernels(
    runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kernels"]) == 0
    assert "no kernels" in capsys.readouterr().out.lower()
    assert not list(runtime_dir.glob("scheduler-*"))
