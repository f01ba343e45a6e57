"""Agents that read their keys, lease and first launch from the archive with their code, as in a pod or container."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient

from kit.machine.tiny_kernel import TINY_ARGV
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import (
    AgentEvent,
    Assignment,
    Connection,
    Launch,
    Lease,
    Owner,
    Reserve,
)
from roost.launchers.protocol.rpc import ClientKeys, RpcError, ServerKeys
from roost.launchers.protocol.start_archive import add_start
from roost.placement import Request
from roost.placement.model.json_codec import encode
from roost.scheduler.backends.node_archive import dump_start, pack
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until

LEASE = Lease(id="roost:k:1", kernel_id="k", owner=Owner(user="ada"), request=Request(cpus=1))


PARENT_KERNEL = """
import json, os, signal, socket, subprocess, sys, time
SLEEP = ["sleep", "300"]
signal.signal(signal.SIGINT, lambda *_: print("interrupted", flush=True))
signal.signal(signal.SIGTERM, signal.SIG_IGN)
DEAF = "import signal, time\\nsignal.signal(15, 1)\\nprint('deaf', flush=True)\\nwhile True: time.sleep(0.1)"
deaf = subprocess.Popen([sys.executable, "-S", "-c", DEAF], stdout=subprocess.PIPE)
deaf.stdout.readline()
here = subprocess.Popen(SLEEP)
away = subprocess.Popen(SLEEP, start_new_session=True)
shell = subprocess.run(["sh", "-c", "setsid sleep 300 >/dev/null 2>&1 & echo $!"], capture_output=True, text=True)
print(here.pid, away.pid, int(shell.stdout), deaf.pid, flush=True)
connection = json.load(open(sys.argv[1]))
servers = [socket.create_server((connection["ip"], connection[name])) for name in ("shell_port", "iopub_port")]
while True:
    time.sleep(0.1)
"""
"""A kernel that ignores SIGTERM. It has two children in its group, one in another session, and a daemon.

No `signal.pause()`: a signal that comes just before it is handled at its end.
"""


@dataclass(frozen=True)
class AssignedAgent:
    """An agent's process, which leads a session as a container's first process does, and a connection to the agent.

    `events` has all events that the agent has published since the connection.
    """

    process: asyncio.subprocess.Process
    client: AgentClient
    events: list[AgentEvent]


@asynccontextmanager
async def assigned_agent(
    folder: Path,
    launch: Launch,
    *,
    lease: Lease = LEASE,
    before: bytes = b"",
    after: bytes = b"",
    pass_fds: Sequence[int] = (),
    **changes: Any,
) -> AsyncIterator[AssignedAgent]:
    """Run an agent, and connect to it once it listens. At the end it is terminated, unless it has ended.

    The file of its archive has the bytes `before` and `after` around the archive. `changes` are fields of
    `AgentSettings`. `pass_fds` are files that the agent's process inherits.
    """
    public, secret = (key.decode() for key in zmq.curve_keypair())
    mine = [key.decode() for key in zmq.curve_keypair()]
    settings = AgentSettings(is_per_kernel=True, ports=(free_port(),), cpus=2, memory_bytes=1000)
    settings = replace(settings, **changes)
    assignment = Assignment(
        keys=ServerKeys(public=public, secret=secret, clients=frozenset([mine[0]])),
        reserve=Reserve(lease=lease, is_granted=True, launch=launch),
    )
    process = await start_archive(folder, settings, assignment, before=before, after=after, pass_fds=pass_fds)
    keys = ClientKeys(server=public, public=mine[0], secret=mine[1])
    try:
        events: list[AgentEvent] = []
        client = await connect(f"tcp://127.0.0.1:{settings.ports[-1]}", keys, events.append)
        try:
            yield AssignedAgent(process, client, events)
        finally:
            await client.close()
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), allow_s(60)) == 0


async def start_archive(
    folder: Path,
    settings: AgentSettings,
    assignment: Assignment,
    *,
    before: bytes = b"",
    after: bytes = b"",
    **options: Any,
) -> asyncio.subprocess.Process:
    """Start an agent from an archive in a private file of `folder`."""
    archive = add_start(pack(is_imported=True)[0], dump_start(settings, assignment))
    file = folder / "private"
    file.touch(mode=0o600)
    file.write_bytes(before + archive + after)
    return await asyncio.create_subprocess_exec(
        sys.executable, str(file), "agent", "label" * 20, cwd=folder, start_new_session=True, **options
    )


async def find_children(client: AgentClient) -> list[psutil.Process]:
    """Return the four processes that the last kernel with the program `PARENT_KERNEL` has started."""
    text = await client.logs("k", 1000)
    return [psutil.Process(int(pid)) for pid in text.split()[-4:]]


async def connect(
    endpoint: str, keys: ClientKeys, on_event: Callable[[AgentEvent], None] | None = None
) -> AgentClient:
    """Connect to an agent as soon as it listens."""

    async def try_once() -> AgentClient | None:
        client = AgentClient(endpoint, keys, on_event=on_event)
        try:
            await client.connect()
        except (RpcError, asyncio.TimeoutError):
            return None
        return client

    return await until(try_once, "the agent listens", 60, 0.02)


def a_launch(argv: tuple[str, ...] = TINY_ARGV) -> Launch:
    return Launch(
        launch_id="first",
        lease_id=LEASE.id,
        kernel_id="k",
        argv=argv,
        env={"PATH": os.environ["PATH"], "ROOST_RUNTIME_DIR": os.environ["ROOST_RUNTIME_DIR"]},
        cwd="/",
        connection=Connection(key="k"),
    )


async def evaluate(connection: Connection, expression: str) -> Any:
    """Return the value of an expression in a kernel."""
    client = AsyncKernelClient()
    client.load_connection_info({**encode(connection), "key": connection.key.encode()})
    client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
    try:
        client.execute("import os, sys", user_expressions={"value": expression})
        reply = await client.get_shell_msg(timeout=allow_s(30))
        return ast.literal_eval(reply["content"]["user_expressions"]["value"]["data"]["text/plain"])
    finally:
        client.stop_channels()
