"""The `roost` command as a person uses it: processes of its own, a real scheduler, real kernels."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import pytest

import roost
from roost.testing.deadlines import allow_s

pytestmark = pytest.mark.backends("local", "ray", why="the same command on every backend")
DEADLINE_S = 180.0

T = TypeVar("T")


class Shell:
    """The `roost` command with `--backend`, as a process of its own."""

    def __init__(self, backend: str) -> None:
        self.backend = backend

    def run(self, verb: str, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a subcommand of `roost`, such as `explain`, with its arguments until it ends."""
        return subprocess.run(
            [sys.executable, "-m", "roost", verb, "--backend", self.backend, *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=allow_s(DEADLINE_S),
        )

    def answer(self, *argv: str) -> dict[str, Any]:
        """Return the JSON that a subcommand prints with `--json`. The subcommand must succeed."""
        done = self.run(*argv, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))


@pytest.fixture
def shell(backend: str, backend_runtime_dir: Path) -> Shell:
    """Return the `roost` command for the backend. All tests of a backend share a service."""
    return Shell(backend)


def test_explain_names_the_kernels_that_hold_the_short_resource(shell: Shell, tmp_path: Path) -> None:
    node = max(shell.answer("nodes")["nodes"], key=lambda node: float(node["cpus"]))
    saved = tmp_path / "nodes.json"
    all_cpus = str(node["cpus"])
    with roost.start_kernel(backend=shell.backend, cpus=node["cpus"]):
        (kernel,) = shell.answer("kernels")["kernels"]
        explanation = shell.answer("explain", "--cpus", all_cpus)["decision"]
        saved.write_text(shell.run("nodes", "--json").stdout)
    assert explanation["placement"] is None
    assert explanation["soonest"]["node_id"] == node["id"]
    assert [held["id"] for held in explanation["soonest"]["kernels"]] == [kernel["id"]]
    again = shell.answer("explain", "--cpus", all_cpus, "--snapshot", str(saved))["decision"]
    assert again["reason"] == explanation["reason"]
    _await(
        lambda: shell.answer("explain", "--cpus", all_cpus)["decision"]["placement"], "it is not free again"
    )


def test_a_queued_start_is_shown_and_stopped(shell: Shell) -> None:
    nodes = [node["id"] for node in shell.answer("nodes")["nodes"]]
    for node in nodes:
        assert shell.answer("drain", node)["is_draining"]
    with ThreadPoolExecutor() as pool:
        try:
            waiting = pool.submit(roost.start_kernel, backend=shell.backend)
            (queued, *_) = _await(
                lambda: [
                    each for each in shell.answer("kernels", "--pending")["kernels"] if each["waits_for"]
                ],
                "nothing was queued",
            )
            assert queued["position"] == 1
            assert "draining" in queued["waits_for"]
            assert queued["created_at"] > 0
            assert shell.answer("stop", queued["id"][:8]) == {
                "stopped": [{"id": queued["id"], "outcome": "removed from the queue"}]
            }
            with pytest.raises(roost.RoostError, match="taken back"):
                waiting.result(allow_s(DEADLINE_S))
        finally:  # before the pool waits for the start
            for node in nodes:
                shell.answer("drain", node, "--off")


def _await(question: Callable[[], T], complaint: str) -> T:
    """Call `question`, at most 200 times, until its answer is not empty, and return the answer."""
    for _ in range(200):
        if found := question():
            return found
    raise AssertionError(complaint)


def test_doctor_finds_nothing_wrong(shell: Shell) -> None:
    levels = {finding["level"] for finding in shell.answer("doctor")["findings"]}
    assert "error" not in levels


def test_each_command_that_a_text_names_works_as_it_is_printed(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands of findings, remedies and errors are typed in a shell, in the order in which they were printed."""
    (tmp_path / "roost").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m roost "$@"\n')
    (tmp_path / "roost").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("COLUMNS", "1000")  # no line is broken
    nodes = [node["id"] for node in shell.answer("nodes")["nodes"]]
    for node in nodes:
        shell.answer("drain", node)
    texts = [
        shell.run(*words)
        for words in (
            ("doctor",),
            ("explain",),
            ("drain", "no-such-node"),
            ("stop",),
            ("stop", "no-such-kernel"),
            ("logs", "no-such-kernel"),
        )
    ]
    printed = "\n".join(done.stdout + done.stderr for done in texts)
    commands = list(dict.fromkeys(re.findall("`(roost [^`]*)`", printed)))
    backend = "" if shell.backend == "local" else f" --backend {shell.backend}"
    assert {
        f"roost nodes{backend}",
        f"roost kernels{backend}",
        *(f"roost drain {node} --off{backend}" for node in nodes),
    } <= set(commands)
    for command in commands:
        typed = subprocess.run(
            ["sh", "-c", command], capture_output=True, text=True, timeout=allow_s(DEADLINE_S)
        )
        assert typed.returncode == 0, (command, typed.stdout, typed.stderr)
    assert not any(node["is_draining"] for node in shell.answer("nodes")["nodes"])
    assert shell.answer("explain")["decision"]["placement"]
