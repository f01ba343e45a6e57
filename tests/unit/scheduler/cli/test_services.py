"""What `roost restart-service` prints, and the options that it keeps."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kit.fakes.client import StubClient, run
from roost.scheduler.cli import services
from roost.scheduler.cli.commands import build_parser
from roost.scheduler.cli.options import scheduler_options
from roost.scheduler.client.advice import write_command
from roost.scheduler.client.service_restart import Restart


def test_a_written_command_is_one_that_can_be_typed() -> None:
    options = {"address": "tcp://head:8786", "python": "/a b/python", "cpus": 2, "fork": False}
    words = shlex.split(write_command("kernels", "dask", options))
    arguments = build_parser().parse_args(words[1:])
    assert arguments.backend == "dask"
    assert scheduler_options(arguments) == options


@pytest.mark.parametrize(
    ("given", "running", "wanted"),
    [
        ({}, {"address": "h:1", "python": "x"}, {"address": "h:1", "python": "x"}),
        ({"address": "h:2"}, {"address": "h:1", "python": "x"}, {"address": "h:2", "python": "x"}),
        ({"python": "y"}, {"address": "h:1", "python": "x"}, {"python": "y"}),
        ({"python": "y"}, None, {"python": "y"}),
        ({}, None, {}),
    ],
)
def test_a_restart_keeps_the_options_unless_it_has_some(
    client: StubClient,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: Mapping[str, Any],
    running: Mapping[str, Any] | None,
    wanted: Mapping[str, Any],
) -> None:
    asked: list[Mapping[str, Any]] = []

    def restart(folder: Path, backend: str, options: Mapping[str, Any]) -> Restart:
        asked.append(options)
        return Restart(ended_pid=1, was_killed=False, pid=2, took_s=0.1)

    monkeypatch.setattr(services, "restart_service", restart)
    monkeypatch.setattr(services, "read_options", lambda _: running)
    client.options = dict(given)
    assert run(capsys, "restart-service", "--backend", "ray")[0] == 0
    assert asked == [wanted]


@pytest.mark.parametrize("unreachable", [[], ["n7"]])
def test_a_restart_says_what_lives_on(
    client: StubClient,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    unreachable: list[str],
) -> None:
    done = Restart(ended_pid=1, was_killed=False, pid=2, took_s=0.1)
    monkeypatch.setattr(services, "restart_service", lambda *_: done)
    client.unreachable = unreachable
    code, out, _ = run(capsys, "restart-service", "--backend", "ray")
    assert code == 0
    assert ("; more may live on n7, where no agent answers now." in out) is bool(unreachable)
    ended, begun = out.splitlines()
    assert ended == "The service of ray at 192.0.2.1:6379 (pid 1) has ended."
    assert begun.startswith("The next one (pid 2) serves after 0.1 s, ")
