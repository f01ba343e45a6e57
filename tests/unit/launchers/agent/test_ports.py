"""Ports for kernels that cannot choose their own."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

from roost.launchers.agent import ports
from roost.launchers.protocol.messages import PORT_NAMES, Connection


def numbers(connection: Connection) -> set[int]:
    return {getattr(connection, name) for name in PORT_NAMES}


def test_ports_of_other_kernels_are_not_chosen() -> None:
    first = ports.choose(Connection())
    assert ports.choose(first) == first, "its own ports are free"
    second = ports.choose(first, taken=numbers(first))
    assert not numbers(first) & numbers(second)


def test_the_socket_of_a_killed_kernel_is_free_again(tmp_path: Path) -> None:
    wish = ports.choose(Connection(transport="ipc", ip=str(tmp_path / "k")))
    assert numbers(wish) == {1, 2, 3, 4, 5}
    assert ports.choose(wish, taken={1}) == wish, "sockets in other folders do not matter"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{wish.ip}-1")
        server.listen()
        assert numbers(ports.choose(wish)) == {2, 3, 4, 5, 6}
    assert (tmp_path / "k-1").exists()
    assert ports.choose(wish) == wish
    (tmp_path / "k-2").touch()
    assert 2 not in numbers(ports.choose(replace(wish, shell_port=0)))
