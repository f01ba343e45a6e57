"""An agent that gets its keys, its lease and its first launch in a file, as in a pod."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from jupyter_client.asynchronous.client import AsyncKernelClient
from world import TINY_ARGV

from roost.launchers.agent.node_metrics import AgentSettings
from roost.launchers.daemon.private_files import read_json
from roost.launchers.protocol.agent_client import AgentClient
from roost.launchers.protocol.json_codec import encode
from roost.launchers.protocol.messages import Assignment, Connection, Launch, Lease, Owner, Reserve
from roost.launchers.protocol.rpc import ClientKeys, RpcError, ServerKeys
from roost.placement import Request
from roost.scheduler.backends.agent_per_node.bootstrap import pack, read_first_process

LEASE = Lease(id="roost:k:1", kernel_id="k", owner=Owner(user="ada"), request=Request(cpus=1))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def assigned_agent(
    folder: Path, launch: Launch, program: tuple[str, ...] = ("-m", "roost.launchers.agent.main")
) -> AsyncIterator[AgentClient]:
    """Run an agent with an assignment, and connect to it once it listens."""
    public, secret = (key.decode() for key in zmq.curve_keypair())
    mine = [key.decode() for key in zmq.curve_keypair()]
    keys = ServerKeys(public=public, secret=secret, clients=frozenset([mine[0]]))
    file, port = folder / "assignment.json", free_port()
    assignment = Assignment(keys=keys, reserve=Reserve(lease=LEASE, is_granted=True), launch=launch)
    file.write_text(json.dumps(encode(assignment)))
    settings = AgentSettings(is_per_kernel=True, port=port, assignment=str(file), cpus=2, memory_bytes=1000)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *program,
        str(folder / "agent"),
        json.dumps(encode(settings)),
    )
    client_keys = ClientKeys(server=public, public=mine[0], secret=mine[1])
    try:
        yield await connect(f"tcp://127.0.0.1:{port}", client_keys)
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 10) == 0


async def connect(endpoint: str, keys: ClientKeys) -> AgentClient:
    deadline = time.monotonic() + 10
    while True:
        client = AgentClient(endpoint, keys)
        try:
            await client.connect()
            return client
        except RpcError:
            assert time.monotonic() < deadline, "the agent does not listen"
            await asyncio.sleep(0.02)


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


async def test_the_assigned_kernel_starts_before_anyone_asks(runtime_dir: Path) -> None:
    async with assigned_agent(runtime_dir, a_launch()) as client:
        deadline = time.monotonic() + 10
        while not (kernels := (await client.holdings()).kernels):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
        assert (await client.holdings()).leases == (LEASE,)
        joined = await client.launch(a_launch())
        assert joined.pid == kernels[0].pid, "who asks for the launch later joins it"
        assert read_json(runtime_dir / "agent" / "ready.json")["keys"] == {}, "the client's secret stays away"
        await client.close()


async def test_the_first_process_of_a_pod_forks_a_kernel_that_knows_no_roost(runtime_dir: Path) -> None:
    program, archive = runtime_dir / "first_process.py", runtime_dir / "node.zip"
    program.write_bytes(read_first_process())
    archive.write_bytes(pack(is_imported=True)[0])
    launch = a_launch((sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"))
    async with assigned_agent(runtime_dir, launch, (str(program), str(archive))) as client:
        process = await client.launch(launch)
        assert process.how == "forked"
        assert psutil.Process(process.pid).cmdline()[1:3] == ["-m", "ipykernel_launcher"]
        assert os.getsid(process.pid) == process.pid
        found = await evaluate(
            process.connection, "__name__, sorted(sys.modules), sys.path, dict(os.environ)"
        )
        name, modules, paths, environment = found
        assert name == "__main__"
        assert not [module for module in modules if module.startswith("roost")]
        assert not [path for path in paths if str(runtime_dir) in path]
        assert environment["ROOST_RUNTIME_DIR"] == launch.env["ROOST_RUNTIME_DIR"]
        await client.close()
    assert not psutil.pid_exists(process.pid)


async def evaluate(connection: Connection, expression: str) -> Any:
    """Return the value of an expression in a kernel."""
    client = AsyncKernelClient()
    client.load_connection_info({**encode(connection), "key": connection.key.encode()})
    client.start_channels(shell=True, iopub=False, stdin=False, hb=False, control=False)
    try:
        client.execute("import os, sys", user_expressions={"value": expression})
        reply = await client.get_shell_msg(timeout=30)
        return ast.literal_eval(reply["content"]["user_expressions"]["value"]["data"]["text/plain"])
    finally:
        client.stop_channels()


@pytest.mark.parametrize(
    "changes", [{"may_fork": False}, {"env": {"PYTHONHASHSEED": "7"}}, {"argv": TINY_ARGV}]
)
async def test_the_first_process_leaves_other_kernels_to_the_agent(
    runtime_dir: Path, changes: dict[str, Any]
) -> None:
    program, archive = runtime_dir / "first_process.py", runtime_dir / "node.zip"
    program.write_bytes(read_first_process())
    archive.write_bytes(pack(is_imported=True)[0])
    launch = a_launch((sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"))
    launch = replace(launch, **{**changes, "env": {**launch.env, **changes.get("env", {})}})
    async with assigned_agent(runtime_dir, launch, (str(program), str(archive))) as client:
        assert (await client.launch(launch)).how == "exec"
        await client.close()


async def test_a_failed_assignment_answers_whoever_asks_for_it(runtime_dir: Path) -> None:
    async with assigned_agent(runtime_dir, a_launch(("no-such-program",))) as client:
        with pytest.raises(RpcError, match="'no-such-program' was not found"):
            await client.launch(a_launch(("no-such-program",)))
        await client.close()
