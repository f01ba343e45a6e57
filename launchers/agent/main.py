"""The process of an agent: one per user and machine.

Run as `python -m roost.launchers.agent.main FOLDER SETTINGS`. FOLDER (mode 0700) has everything that the next agent
needs to adopt the kernels: `leases/`, `kernels/` and `manager.json`. The kernels outlive the agent.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zmq

from roost.launchers.daemon.daemon import AlreadyRunning, announce, hold
from roost.launchers.protocol import messages
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import PROTOCOL
from roost.launchers.protocol.process_context import loosen
from roost.launchers.protocol.process_log import set_up_log
from roost.launchers.protocol.rpc import ServerKeys
from roost.launchers.protocol.rpc_server import RpcServer
from roost.launchers.protocol.shared_values import VERSION
from roost.launchers.protocol.unfinished_handshakes import return_large_blocks
from roost.placement.model.json_codec import decode, encode

from .agent import Agent
from .launch.place import Place, find_place

NO_PORT_EXIT = 98
"""The exit code of an agent that found none of its ports free. It is EADDRINUSE on Linux."""
_NAMED = 5
"""At most this many ports are named in an error."""


class NoFreePort(Exception):
    """None of the agent's ports is free. The text names them."""


async def serve(
    folder: Path,
    settings: AgentSettings,
    place: Place,
    assignment: messages.Assignment | None = None,
) -> None:
    """Run the agent of `folder` until the agent is idle, asked to leave or terminated.

    Without an assignment, the agent makes its own keys and waits for a lease. Raises `AlreadyRunning` and `NoFreePort`.
    """
    with hold(folder) as held:
        public, secret = (key.decode() for key in zmq.curve_keypair())
        client_public, client_secret = (key.decode() for key in zmq.curve_keypair())
        client_keys = {"server": public, "public": client_public, "secret": client_secret}
        keys = ServerKeys(public=public, secret=secret, clients=frozenset([client_public]))
        if assignment is not None:
            keys, client_keys = assignment.keys, {}
        agent = Agent(folder, settings, place, keys)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(signum, agent.terminate)
        try:
            await agent.adopt()
            if assignment is not None:
                await agent.begin(assignment)
            endpoint = listen(agent.server, folder, place.ip, settings.ports or _shuffle(place.kernel_ports))
            if assignment is not None and assignment.report_to:
                agent.report(assignment, endpoint)
            announced = {"endpoint": endpoint, "keys": client_keys, "protocol": PROTOCOL, "version": VERSION}
            announced["settings"] = encode(settings)
            announce(folder, announced)
            agent.watch_folder(held)
            await agent.left.wait()
            await place.leave(agent.leases)
        finally:
            await agent.close()


def listen(server: RpcServer, folder: Path, ip: str, ports: Sequence[int]) -> str:
    """Bind the first of these ports that is free, or any if there are none, and return the endpoint.

    An agent for this machine alone has no IP address, but a Unix socket in its folder. No other user can reach that
    socket. Raises `NoFreePort`.
    """
    if not ip:
        path = folder / "socket"
        path.unlink(missing_ok=True)  # left by a killed agent: this process holds the folder
        try:
            return server.start(f"ipc://{path}")
        except zmq.ZMQError as problem:
            raise NoFreePort(f"the agent cannot listen at {path}: {problem}") from None
    host = f"tcp://{ip}"
    try:
        return server.start(*(f"{host}:{port}" for port in ports or ("*",)))
    except zmq.ZMQError as problem:
        names = ", ".join(map(str, ports[:_NAMED])) + (", …" if len(ports) > _NAMED else "")
        raise NoFreePort(f"the agent cannot listen at {host}, on port {names or 'any'}: {problem}") from None


def _shuffle(ports: range) -> Sequence[int]:
    """Return these ports in a random order: agents of several users may share the range."""
    return random.sample(ports, k=len(ports))


def fill_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a pod's agent, with an IP address as `address`.

    `$NAME` in their texts is a variable of the environment, such as this node's address.
    """
    filled = {
        name: os.path.expandvars(value) if isinstance(value, str) else value
        for name, value in settings.items()
    }
    if address := filled["address"]:
        try:
            filled["address"] = socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0]
        except OSError as problem:
            sys.exit(f"this node's own address {address} is unknown here: {problem}")
    return filled


def main(arguments: list[str], assigned: dict[str, Any] | None = None) -> int:
    """Run the agent. `assigned` has the fields of an `Assignment`."""
    set_up_log()
    return_large_blocks()
    folder, given = Path(arguments[0]), json.loads(arguments[1])
    if given.get("is_per_kernel"):
        given = fill_in(given)
    settings = decode(AgentSettings, given)
    place = find_place(settings)
    if not place.keeps_context:
        loosen()
    # Kernels would inherit the signals that the starter blocks. A worker of Ray blocks SIGINT, the interrupt.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    assignment = decode(messages.Assignment, assigned) if assigned else None
    try:
        asyncio.run(serve(folder, settings, place, assignment))
    except (AlreadyRunning, NoFreePort) as problem:
        print(problem, file=sys.stderr)
        return NO_PORT_EXIT if isinstance(problem, NoFreePort) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
