"""The relay of a gateway: what it refuses, and that it passes on what a client and a service say."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from roost.scheduler.client import relay
from roost.scheduler.client.relay import (
    Refused,
    check_user,
    forget_caller,
    read_backend,
    read_caller,
    take_listener,
)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "one argument"),
        (["local", "--folder=/tmp"], "one argument"),
        (["nothing"], "no such backend"),
        (["../local"], "no such backend"),
        (["ray"], "do not run as the user"),
        (["docker"], "do not run as the user"),
    ],
)
def test_only_a_backend_is_an_argument(arguments: list[str], words: str) -> None:
    with pytest.raises(Refused, match=words):
        read_backend(arguments)
    assert read_backend(["local"]) == "local"


def test_only_the_accounts_of_people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ada = pwd.struct_passwd(("ada", "x", 1234, 1234, "", "/home/ada", "/bin/sh"))
    accounts = {0: pwd.getpwuid(0), 1234: ada}
    monkeypatch.setattr(relay.pwd, "getpwuid", accounts.__getitem__)
    definitions = tmp_path / "login.defs"
    definitions.write_text("# UID_MIN 1\nUID_MIN\t\t1200\n")
    monkeypatch.setattr(relay, "_LOGIN_DEFINITIONS", definitions)
    assert check_user(1234, 1234) == "/home/ada"
    for uid, effective in ((0, 0), (1234, 0), (0, 1234), (77, 77)):
        with pytest.raises(Refused):
            check_user(uid, effective)
    definitions.write_text("UID_MIN 5000\n")
    with pytest.raises(Refused, match="ada is none"):
        check_user(1234, 1234)


@pytest.mark.parametrize("given", [None, "", "x", "-1", "1 "])
def test_only_sudo_starts_it(given: str | None) -> None:
    with pytest.raises(Refused, match="`sudo` starts it"):
        read_caller({} if given is None else {"SUDO_UID": given})


def test_sudos_variables_go(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"SUDO_UID": "7", "SUDO_COMMAND": "x", "HOME": "/home/ada"}
    forget_caller(environment)
    assert environment == {"HOME": "/home/ada"}


@pytest.fixture
def standard_input() -> Iterator[None]:
    """Give the standard input back after the test."""
    kept = os.dup(0)
    yield
    os.dup2(kept, 0)
    os.close(kept)


@pytest.mark.usefixtures("standard_input")
def test_only_a_listening_socket_of_its_caller(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket() as tcp, open(os.devnull) as nothing:
        listener.bind(path)
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        one, other = socket.socketpair()
        with one, other:
            for wrong in (nothing, tcp, one, listener):  # the last one does not listen yet
                os.dup2(wrong.fileno(), 0)
                with pytest.raises(Refused, match="no listening Unix socket"):
                    take_listener(os.getuid())
        listener.listen()
        os.dup2(listener.fileno(), 0)
        with pytest.raises(Refused, match="Another user"):
            take_listener(os.getuid() + 1)
        os.dup2(listener.fileno(), 0)
        with take_listener(os.getuid()) as taken, socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
            taken.accept()[0].close()
            assert os.fstat(0).st_rdev == os.stat(os.devnull).st_rdev


def test_it_says_what_it_refuses_in_one_line() -> None:
    command = [sys.executable, "-m", "roost.scheduler.client.relay", "nothing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "roost-relay: There is no such backend.\n")
