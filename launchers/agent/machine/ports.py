"""Ports for kernels: for a forked kernel, sockets that listen already; for any other, free port numbers.

These numbers lie outside the range from which the system assigns ports. The kernel binds them some time after they
were chosen. Until it ends, roost holds a claim on each, so that no other agent of this user chooses it. Claims of other
users only rank last: anybody could claim all ports.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import os
import random
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from roost.launchers.daemon.tcp_listeners import are_known, list_listeners
from roost.launchers.protocol.messages import PORT_NAMES, Connection

from . import claims

_FIRST_PORT = 20_000
"""The first port for kernels. Those below are Ray's: by default, its workers listen on 10002 to 19999."""
_CLAIM = "roost-port-{}"
"""The name that claims a TCP port."""
_MOST_CANDIDATES = 2_000
"""At most this many ports are tried for a kernel."""
_BACKLOG = 100  # as ZeroMQ has
_RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_PROBE_TIMEOUT_S = 0.05
_PROBE_INTERVALS_S = (*[0.02] * 100, 0.1)  # short for two seconds: a Python kernel listens soon


@contextlib.contextmanager
def claim(connection: Connection, allowed: Sequence[int] = ()) -> Iterator[Connection]:
    """Yield `connection` with five free ports: its own if they are all free, otherwise new ones. Raises `OSError`.

    New TCP ports are some of `allowed`, if that is not empty. In the block, this agent and others on this machine
    choose none of these TCP ports again.
    """
    with contextlib.ExitStack() as held:
        own = [getattr(connection, name) for name in PORT_NAMES]
        found = sorted(
            _claim(connection, own, held), key=own.index
        )  # a port may rank last, and is still its own
        if len(found) < len(PORT_NAMES):
            held.close()
            is_ipc = connection.transport == "ipc"
            known = range(1, 100_000) if is_ipc else allowed or _candidates()
            candidates = known if is_ipc else random.sample(known, k=min(len(known), _MOST_CANDIDATES))
            found = _claim(connection, candidates, held)
        if len(found) < len(PORT_NAMES):
            which = f" from {allowed[0]} to {allowed[-1]}, which kernel_ports allows" if allowed else ""
            raise OSError(f"there are no five free ports on {connection.ip}{which}")
        yield connection.with_ports(dict(zip(PORT_NAMES, found, strict=True)))


def _claim(connection: Connection, candidates: Iterable[int], held: contextlib.ExitStack) -> list[int]:
    """Return the first free ports of `candidates`, at most as many as a kernel needs. `held` gives them back.

    If there are too few without a claim, they are ports that other users claim.
    """
    foreign: list[int] = []
    free = (port for port in candidates if port > 0 and _claim_one(connection, port, held, foreign))
    found = list(itertools.islice(free, len(PORT_NAMES)))
    rest = (port for port in foreign if is_free(connection, port))
    return [*found, *itertools.islice(rest, len(PORT_NAMES) - len(found))]


def _claim_one(connection: Connection, port: int, held: contextlib.ExitStack, foreign: list[int]) -> bool:
    """Claim a port if it is free. A socket file and, not on Linux, a TCP port are only looked at.

    Put the port into `foreign` if another user claims it.
    """
    if connection.transport == "ipc" or sys.platform != "linux":
        return is_free(connection, port)
    name = _CLAIM.format(port)
    with contextlib.ExitStack() as kept:
        try:
            kept.enter_context(claims.claim(name))
        except OSError as problem:
            if problem.errno != errno.EADDRINUSE:
                raise
            owner = claims.find_owner(name)
            if owner is None or not owner.is_ours:
                foreign.append(port)
            return False
        if not is_free(connection, port):
            return False
        held.push(kept.pop_all())
    return True


@contextlib.contextmanager
def listen(
    connection: Connection, allowed: Sequence[int] = ()
) -> Iterator[tuple[Connection, tuple[int, ...]]]:
    """Listen on the ports of a connection, or on new ports if one is taken; raises `OSError`.

    Yield the connection with these ports, and five listening sockets. They are closed at the end; a kernel
    keeps its own copies. For ipc, this only chooses ports and yields no sockets. `allowed` is that of `claim`.
    """
    if connection.transport == "ipc":
        with claim(connection) as chosen:
            yield chosen, ()
        return
    with contextlib.ExitStack() as sockets:
        if allowed:
            connection = sockets.enter_context(claim(connection, allowed))
        wanted = [getattr(connection, name) for name in PORT_NAMES]
        try:
            opened = _listen(connection.ip, wanted, sockets)
        except OSError:
            if allowed or not any(wanted):
                raise
            opened = _listen(connection.ip, [0] * len(wanted), sockets)
        found = {name: each.getsockname()[1] for name, each in zip(PORT_NAMES, opened, strict=True)}
        yield connection.with_ports(found), tuple(each.fileno() for each in opened)


def _listen(ip: str, numbers: Sequence[int], sockets: contextlib.ExitStack) -> list[socket.socket]:
    """Return sockets that listen on these ports (0: any port). The exit stack `sockets` closes them later.

    Raises `OSError` if a port is taken, and then leaves no socket open.
    """
    host, family = "" if ip == "*" else ip, socket.AF_INET6 if ":" in ip else socket.AF_INET
    with contextlib.ExitStack() as new:
        opened = [
            new.enter_context(socket.create_server((host, number), family=family, backlog=_BACKLOG))
            for number in numbers
        ]
        sockets.push(new.pop_all())
        return opened


async def until_listening(connection: Connection) -> None:
    """Return once the kernel accepts connections on its shell and IOPub ports.

    Polls, as not every kernel reports its ports. A kernel may open them in any order.
    """
    for port in (connection.shell_port, connection.iopub_port):
        for attempt in itertools.count():
            if _is_listening(connection, port):
                break
            await asyncio.sleep(_PROBE_INTERVALS_S[min(attempt, len(_PROBE_INTERVALS_S) - 1)])


def _is_listening(connection: Connection, port: int) -> bool:
    """True if the port accepts a connection. It is on this machine, so the answer takes microseconds."""
    if connection.transport == "ipc":
        family, address = socket.AF_UNIX, f"{connection.ip}-{port}"
    else:
        host = find_host(connection)
        family, address = socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port)  # type: ignore[assignment]
    with socket.socket(family) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(address)
        except OSError:
            return False
        if connection.transport == "ipc":
            return claims.read_peer(probe).is_ours
    return _is_ours(port)


def _is_ours(port: int) -> bool:
    """True if this user listens on a TCP port. Another user may have bound the port that was chosen for a kernel."""
    if any(each.port == port and each.uid == os.getuid() for each in list_listeners()):
        return True
    return not are_known()


def find_host(connection: Connection) -> str:
    """Return the address at which this machine reaches the kernel."""
    return "127.0.0.1" if connection.ip in ("*", "0.0.0.0") else connection.ip


def find_endpoint(connection: Connection, port: int) -> str:
    """Return the ZeroMQ endpoint at which this machine reaches a port of the kernel."""
    if connection.transport == "ipc":
        return f"ipc://{connection.ip}-{port}"
    host = find_host(connection)
    return f"tcp://{f'[{host}]' if ':' in host else host}:{port}"


def _candidates() -> range:
    try:
        low = int(_RANGE_FILE.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        low = 32_768
    return range(_FIRST_PORT, low) if low - _FIRST_PORT > 4_000 else range(49_152 - 10_000, 65_535)


def are_free(connection: Connection) -> bool:
    """True if nobody has any port of a connection."""
    return all(is_free(connection, getattr(connection, name)) for name in PORT_NAMES)


def is_free(connection: Connection, port: int) -> bool:
    if connection.transport == "ipc":
        return _is_free_socket(f"{connection.ip}-{port}")
    host = "" if connection.ip == "*" else connection.ip
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _is_free_socket(path: str) -> bool:
    """True if no kernel listens at `path`. Removes a socket file that a killed kernel has left."""
    if not os.path.lexists(path):
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            if Path(path).is_socket():
                os.unlink(path)
                return True
        except OSError:
            pass
    return False
