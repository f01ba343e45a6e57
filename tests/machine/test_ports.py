"""Ports for kernels that cannot choose their own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from kit.machine.daemons import agent_folder
from kit.machine.other_user import claimed_by_another_user
from kit.machine.real_agent import agent_session, end_agent
from kit.machine.tiny_kernel import TINY_ARGV
from roost.launchers.agent.machine import ports
from roost.launchers.daemon.daemon import read_announcement
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import PORT_NAMES, Connection
from roost.testing.deadlines import allow_s


def numbers(connection: Connection) -> set[int]:
    return {getattr(connection, name) for name in PORT_NAMES}


def choose(connection: Connection) -> Connection:
    with ports.claim(connection) as chosen:
        return chosen


def test_claimed_ports_are_not_chosen_again() -> None:
    with ports.claim(Connection()) as first:
        with ports.claim(first) as second:
            assert not numbers(first) & numbers(second), "a kernel that has not bound them yet has its ports"
        with ports.claim(second) as again:
            assert again == second, "a restart keeps its ports"
    with ports.claim(first) as again:
        assert again == first


def test_an_agent_in_another_process_does_not_choose_claimed_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_candidates", lambda: range(7_000, 9_000))
    with ports.claim(Connection()) as claimed:
        code = "import sys; from roost.launchers.agent.machine import ports\n"
        code += "from roost.launchers.protocol.messages import *\n"
        code += "wanted = Connection().with_ports(dict(zip(PORT_NAMES, map(int, sys.argv[1:]))))\n"
        code += "with ports.claim(wanted) as found: print(*(getattr(found, name) for name in PORT_NAMES))"
        wanted = [str(getattr(claimed, name)) for name in PORT_NAMES]
        command = [sys.executable, "-c", code, *wanted]
        chosen = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=allow_s(60)
        ).stdout.split()
        assert len(chosen) == len(wanted)
        assert not {*chosen} & {*wanted}
    assert (
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=allow_s(60)
        ).stdout.split()
        == wanted
    )


def test_a_port_on_which_another_process_listens_is_not_chosen() -> None:
    with ports.claim(Connection()) as first:
        pass
    with socket.create_server((first.ip, first.hb_port)), ports.claim(first) as second:
        assert first.hb_port not in numbers(second)


def test_ports_stay_in_order_if_the_claim_on_one_is_given_back_just_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The claim is refused, and a moment later nobody holds it: the port counts as one of another user."""
    with ports.claim(Connection()) as first:
        pass
    with (
        ports.claims.claim(f"roost-port-{first.shell_port}"),
        monkeypatch.context() as moment,
    ):
        moment.setattr(ports.claims, "find_owner", lambda name: None)
        with ports.claim(first) as again:
            assert again == first


def test_claims_leave_no_socket_open() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with ports.claim(Connection()) as first, ports.claim(first):
        pass
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_forked_kernel_gets_sockets_that_listen() -> None:
    with ports.listen(Connection()) as (first, sockets):
        assert len(numbers(first)) == len(sockets) == len(PORT_NAMES)
        socket.create_connection((first.ip, first.shell_port), timeout=allow_s(10)).close()
        with ports.listen(first) as (second, _):
            assert not numbers(first) & numbers(second), "another kernel has its ports"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((first.ip, first.shell_port), timeout=allow_s(10))
    with ports.listen(first) as (again, _):
        assert again == first, "a restart keeps its ports"


def test_no_socket_stays_open_if_one_port_is_taken() -> None:
    with ports.listen(Connection()) as (chosen, _):
        pass
    with socket.create_server((chosen.ip, chosen.hb_port)), ports.listen(chosen) as (moved, _):
        open_here = psutil.Process().net_connections("tcp")  # another process may have taken such a port
        heard = {each.laddr.port for each in open_here if each.status == psutil.CONN_LISTEN}
        assert heard & numbers(chosen) - numbers(moved) == {chosen.hb_port}


def test_kernels_share_a_range_without_taking_each_others_ports() -> None:
    """One is executed and binds its ports later, the other one is forked and gets sockets."""
    allowed = range(9_500, 9_510)
    with ports.claim(Connection(), allowed) as later, ports.listen(Connection(), allowed) as (first, _):
        assert numbers(later) | numbers(first) == {*allowed}
        for choose_ports in (ports.claim, ports.listen):
            sentence = "no five free ports on 127.0.0.1 from 9500 to 9509, which kernel_ports allows"
            with pytest.raises(OSError, match=sentence), choose_ports(Connection(), allowed):
                pass
    with ports.listen(first, allowed) as (again, _):
        assert again == first, "a restart keeps its ports"
    other = range(9_600, 9_605)
    with socket.create_server((first.ip, first.hb_port)), ports.listen(first, other) as (moved, _):
        assert numbers(moved) == {*other}


def test_a_socket_in_a_folder_has_no_part_in_a_range(tmp_path: Path) -> None:
    wish = Connection(transport="ipc", ip=str(tmp_path / "k"))
    with ports.claim(wish, range(9_500, 9_510)) as chosen:
        assert numbers(chosen) == {1, 2, 3, 4, 5}


async def test_an_agent_and_its_kernels_keep_to_a_range(runtime_dir: Path) -> None:
    """One kernel is executed, and one is forked."""
    settings = AgentSettings(cpus=4, memory_bytes=1 << 30, address="127.0.0.1", kernel_ports=(22_000, 22_019))
    argv = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
    async with agent_session(settings) as agent:
        found = [int(read_announcement(agent_folder(runtime_dir))["endpoint"].rpartition(":")[2])]
        for name, command, how in (("tiny", TINY_ARGV, "exec"), ("python", argv, "forked")):
            await agent.reserve(name)
            launch = agent.build_launch(name, command, deadline_s=allow_s(60))
            if how == "forked":
                await agent.client.warm(launch.argv, launch.env, launch.context)
            process = await agent.client.launch(launch)
            assert process.how == how, process.why_not_forked
            assert process.connection is not None
            found += numbers(process.connection)
    await end_agent(settings)
    assert len({*found}) == 11
    assert {*found} <= {*range(22_000, 22_020)}


def test_ports_on_no_address_of_this_machine_are_refused() -> None:
    with pytest.raises(OSError, match="assign"), ports.listen(Connection(ip="192.0.2.1")):
        pass


def test_the_socket_of_a_killed_kernel_is_free_again(tmp_path: Path) -> None:
    wish = choose(Connection(transport="ipc", ip=str(tmp_path / "k")))
    assert numbers(wish) == {1, 2, 3, 4, 5}
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{wish.ip}-1")
        server.listen()
        assert numbers(choose(wish)) == {2, 3, 4, 5, 6}
    assert (tmp_path / "k-1").exists()
    assert choose(wish) == wish
    (tmp_path / "k-2").touch()
    assert 2 not in numbers(choose(replace(wish, shell_port=0)))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
async def test_a_port_of_another_user_is_not_the_kernels(transport: str) -> None:
    """Another user may open the port before the kernel does. That user would get the clients' messages."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o777)
        ip = "127.0.0.1" if transport == "tcp" else f"{folder}/kernel"
        for user in (65534, 0):
            os.seteuid(user)
            try:
                server = socket.socket(socket.AF_INET if transport == "tcp" else socket.AF_UNIX)
                server.bind((ip, 0) if transport == "tcp" else f"{ip}-{user + 1}")
                server.listen()
            finally:
                os.seteuid(0)
            with server:
                port = server.getsockname()[1] if transport == "tcp" else user + 1
                connection = Connection(ip=ip, transport=transport, shell_port=port, iopub_port=port)
                listening = asyncio.ensure_future(ports.until_listening(connection))
                done, _ = await asyncio.wait([listening], timeout=60 if user == 0 else 0.3)
                assert bool(done) == (user == 0)
                listening.cancel()


async def test_a_kernel_listens_once_its_iopub_port_is_open() -> None:
    """The agent subscribes then. The journal misses what the kernel publishes before that."""
    with (
        ports.claim(Connection()) as connection,
        socket.create_server((connection.ip, connection.shell_port)),
    ):
        listening = asyncio.ensure_future(ports.until_listening(connection))
        assert not (await asyncio.wait([listening], timeout=0.3))[0]
        with socket.create_server((connection.ip, connection.iopub_port)):
            await asyncio.wait_for(listening, timeout=allow_s(60))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_ports_that_another_user_claims_are_taken_last() -> None:
    candidates = ports._candidates()
    others = [f"roost-port-{port}" for port in candidates if port % 50]
    with claimed_by_another_user(others), ports.claim(Connection()) as found:
        assert all(port % 50 == 0 for port in numbers(found))
    others = [f"roost-port-{port}" for port in candidates]
    with claimed_by_another_user(others):
        found = choose(Connection())  # it may have a port that another agent of this user has just given back
        assert len(numbers(found)) == len(PORT_NAMES)
        assert numbers(found) <= set(candidates)
        assert choose(found) == found, "nobody has bound them"
