"""The relay: passes connections on to the own service of the user as whom it runs. `sudo` starts it for a gateway.

    roost gateway ── sudo -n -H -u ada ──> python -I -m roost.scheduler.client.relay local
        │  listens on a private socket, and gives it as standard input      │  runs as ada
        └── connects with that socket ══> relay ══> ada's service <─────────┘  starts it, if none runs

It takes one argument, the backend. It opens nothing that its user could not open anyway, and reads no message. It ends
soon after its last connection; the service and its kernels stay.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import socket
import stat
import struct
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from contextlib import suppress
from pathlib import Path

from roost.launchers.daemon.daemon import DaemonError, ensure
from roost.launchers.daemon.private_files import FolderError
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.client.service_folder import service_command, service_folder
from roost.scheduler.errors import RoostError

READY = b"ready\n"
"""What a relay writes to its standard output once it serves."""
REST_S = 10.0
"""How long a relay without connections waits for one before it ends."""
_MOST_CONNECTIONS = 64
_CHUNK = 1 << 16
_START_SERVICE_S = 30.0
_LOGIN_DEFINITIONS = Path("/etc/login.defs")
_FIRST_PERSON = 1_000
"""The first uid of a person's account, unless `UID_MIN` in that file names another one."""
_NO_LISTENER = (
    "Its standard input is no listening Unix socket: `sudo` must not have log_input for this command."
)
_CREDENTIALS = struct.Struct("3i")
"""The process, user and group of the other side of a Unix socket."""


class Refused(Exception):
    """A relay that must not run. The text is one sentence for the gateway's log."""


def main() -> int:
    """Run the relay of this process's user. Return its exit code."""
    try:
        backend = read_backend(sys.argv[1:])
        home = check_user(os.getuid(), os.geteuid())
        listener = take_listener(read_caller(os.environ))
        forget_caller(os.environ)
        try:
            os.chdir(home)
        except OSError as problem:
            raise Refused(f"The home {home} cannot be entered: {problem.strerror}.") from None
        os.write(1, READY)
        asyncio.run(Relay(backend, listener).run())
    except Refused as problem:
        print(f"roost-relay: {problem}", file=sys.stderr)
        return 2
    return 0


def read_backend(arguments: Sequence[str]) -> str:
    """Return the backend that the only argument names. Raises `Refused`."""
    if len(arguments) != 1:
        raise Refused("It takes one argument, the backend.")
    try:
        spec = get_spec(arguments[0])
    except RoostError:
        raise Refused("There is no such backend.") from None
    if not spec.runs_as_its_user:
        raise Refused(f"The kernels of {spec.name} do not run as the user who starts them.")
    return spec.name


def check_user(uid: int, effective: int) -> str:
    """Return the home of a person's account. Raises `Refused` for root, for a system's account and for none."""
    try:
        account = pwd.getpwuid(uid)
    except KeyError:
        raise Refused(f"The uid {uid} has no account.") from None
    if uid != effective or uid < read_first_person():
        raise Refused(f"It runs for the accounts of people, and {account.pw_name} is none.")
    return account.pw_dir


def read_first_person() -> int:
    """Return the first uid of the accounts of people on this machine."""
    with suppress(OSError, UnicodeDecodeError):
        for line in _LOGIN_DEFINITIONS.read_text().splitlines():
            if match := re.fullmatch(r"UID_MIN\s+(\d+)\s*", line):
                return max(1, int(match[1]))
    return _FIRST_PERSON


def read_caller(environment: Mapping[str, str]) -> int:
    """Return the uid of the account that has called sudo. Raises `Refused`."""
    given = environment.get("SUDO_UID", "")
    if not given.isdecimal():
        raise Refused("`sudo` starts it, for a gateway.")
    return int(given)


def take_listener(caller: int) -> socket.socket:
    """Return the listening socket that is the standard input. The caller must have made it. Raises `Refused`."""
    if not stat.S_ISSOCK(os.fstat(0).st_mode):
        raise Refused(_NO_LISTENER)
    listener = socket.socket(fileno=os.dup(0))
    try:
        check_listener(listener, caller)
    except Refused:
        listener.close()
        raise
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.close(nothing)
    return listener


def check_listener(listener: socket.socket, caller: int) -> None:
    """Raise `Refused` unless this is a Unix socket on which a process of the caller's listens."""
    is_right = listener.family == socket.AF_UNIX and listener.type == socket.SOCK_STREAM
    if not (is_right and listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)):
        raise Refused(_NO_LISTENER)
    if read_peer(listener) != caller:  # of a listening socket, this is who made it listen
        raise Refused("Another user has made its socket.")


def read_peer(connection: socket.socket) -> int:
    """Return the uid of the other side of a Unix socket."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(credentials)
    return int(uid)


def forget_caller(environment: MutableMapping[str, str]) -> None:
    """Remove what sudo says about its caller: the service and the kernels would have it."""
    for name in [name for name in environment if name.startswith("SUDO_")]:
        del environment[name]


class Relay:
    """A relay that serves a listening socket until nobody has been connected for `REST_S`."""

    def __init__(self, backend: str, listener: socket.socket) -> None:
        self._backend = backend
        self._listener = listener
        self._open = 0
        self._starting = asyncio.Lock()
        self._is_over = asyncio.Event()
        self._end: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        server = await asyncio.start_unix_server(self._serve, sock=self._listener, limit=_CHUNK)
        async with server:
            self._end_later()
            await self._is_over.wait()

    def _end_later(self) -> None:
        self._end = asyncio.get_running_loop().call_later(REST_S, self._is_over.set)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a caller with the service until one of them closes."""
        if self._open >= _MOST_CONNECTIONS:
            writer.close()
            return
        self._open += 1
        if self._end is not None:
            self._end.cancel()
        own: asyncio.StreamWriter | None = None
        try:
            answers, own = await asyncio.open_unix_connection(await self._find_service(), limit=_CHUNK)
            ways = ((reader, own), (answers, writer))
            both = [asyncio.ensure_future(_pass_on(source, sink)) for source, sink in ways]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        except (OSError, DaemonError, FolderError, RoostError) as problem:
            print(f"roost-relay: {problem}", file=sys.stderr, flush=True)
        finally:
            writer.close()
            if own is not None:
                own.close()
            self._open -= 1
            if not self._open:
                self._end_later()

    async def _find_service(self) -> str:
        """Return the path of the service's socket, and start the service if none runs."""
        async with self._starting:
            folder = await asyncio.to_thread(service_folder, self._backend, {})
            argv, environment = service_command(self._backend, folder, {})
            await asyncio.to_thread(ensure, folder, argv, env=environment, deadline_s=_START_SERVICE_S)
            return str(folder / "socket")


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()


if __name__ == "__main__":
    sys.exit(main())
