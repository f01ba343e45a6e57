"""Launchers that fail, connections that attack, and a killed bridge: one sentence, and nothing is left."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from kit.jupyter.odd_launcher import Bridged, an_answer, bridged, load_seal, odd_launcher
from roost.testing.deadlines import allow_s, until_blocking

pytestmark = [pytest.mark.usefixtures("runtime_dir")]
NO_ANSWER = "The launcher has not answered, or its kernel has not listened, within "


@pytest.mark.parametrize(
    ("launcher", "timeout_s", "sentence"),
    [
        (odd_launcher("dies"), 600, "no luck today"),
        (odd_launcher("ends"), 600, "The launcher ended before its kernel listened"),
        (odd_launcher("hangs"), 5, NO_ANSWER),
        (odd_launcher("late"), 5, NO_ANSWER),
        (odd_launcher("silent"), 5, NO_ANSWER),
        (odd_launcher("old"), 5, NO_ANSWER),
        (
            ["/no/program", "{response_address}", "{public_key}"],
            600,
            "The launcher /no/program cannot be started",
        ),
        (odd_launcher()[:-2], 600, "The launcher's command has no {response_address}"),
    ],
    ids=["dies", "ends", "hangs", "late", "silent", "old", "missing", "without_places"],
)
def test_a_launcher_that_fails(tmp_path: Path, launcher: list[str], timeout_s: float, sentence: str) -> None:
    with bridged(tmp_path, launcher, timeout_s=timeout_s) as bridge:
        assert bridge.wait() == 1
    assert bridge.log.splitlines()[-1].startswith(sentence)
    assert "Traceback" not in bridge.log


def test_a_launcher_that_answers_twice(tmp_path: Path) -> None:
    with bridged(tmp_path, odd_launcher("twice")) as bridge, bridge.client() as client:
        client.execute("6 * 7", reply=True, timeout=allow_s(60))


def find_launcher(bridge: Bridged) -> psutil.Process:
    """Wait until the launcher `waits`, and return its process."""
    until_blocking(lambda: "waits" in bridge.log, "the launcher waits", 60, 0.02)
    return next(
        each for each in bridge.descendants() if each.cmdline()[1] == "-c" and "waits" in each.cmdline()
    )


def test_attacks_on_the_listener(tmp_path: Path) -> None:
    with bridged(tmp_path, odd_launcher("waits")) as bridge:
        launcher = find_launcher(bridge)
        kernel_id, address, public_key = launcher.cmdline()[-3:]
        host, port = address.split(":")
        with socket.create_server((host, 0)) as own:
            forged = load_seal()["seal"](an_answer(kernel_id, comm_port=own.getsockname()[1]), public_key)
            connections = []
            for content in (b"", b"e", b"\x00" * 70_000, os.urandom(1_000), forged, forged) * 10:
                connections.append(socket.create_connection((host, int(port)), allow_s(10)))
                connections[-1].settimeout(allow_s(10))
                try:
                    connections[-1].sendall(content)
                    if content:
                        connections[-1].shutdown(socket.SHUT_WR)
                except ConnectionError:
                    continue
            launcher.send_signal(signal.SIGUSR1)
            with bridge.client() as client:
                client.execute("6 * 7", reply=True, timeout=allow_s(60))
            for connection in connections:
                connection.close()
        assert bridge.log.count("is of a foreign process") > 0


def test_a_bridge_that_is_killed_while_it_waits(tmp_path: Path) -> None:
    with bridged(tmp_path, odd_launcher("waits")) as bridge:
        find_launcher(bridge)
        below = bridge.descendants()
        bridge.process.kill()
        assert bridge.wait() == -signal.SIGKILL
        _, left = psutil.wait_procs(below, timeout=allow_s(20))
        assert left == []
