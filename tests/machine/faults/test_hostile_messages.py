"""Messages of any form reach the service and the agent. Neither crashes, hangs or grows.

`make long` sends more of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import psutil
import zmq
from hypothesis import strategies as st

from kit.machine.bad_input import INPUTS, any_value, draw_inputs
from kit.machine.daemons import agent_folder, daemon_pids
from kit.machine.tiny_kernel import tiny
from roost.launchers.daemon.private_files import read_json
from roost.launchers.protocol.messages import Connection, Owner
from roost.placement.model import Request
from roost.placement.model.json_codec import encode
from roost.scheduler.client.client import Client
from roost.scheduler.messages import StartKernel
from roost.scheduler.service.server import OPERATIONS

BATCH = 20
ANSWER_MS = 60_000
GROWS_BYTES = 64 << 20
AGENTS_OPERATIONS = (
    "reserve", "release", "transfer", "manage", "launch", "signal", "stop", "list", "logs", "journal", "status",
    "stats", "warm", "subscribe",
)  # fmt: skip
FIELDS = (
    "kernel_id", "launch_id", "lease_id", "lease", "request", "owner", "argv", "env", "cwd", "connection", "cpus",
    "gpus", "memory_bytes", "user", "labels", "grace_s", "signum", "tail_bytes", "after", "offset", "session",
    "since_s", "with_use", "limit", "policy", "node_id", "on", "launch_timeout_s", "deadline_s", "linger_s", "pid",
)  # fmt: skip

values = any_value("k", "roost:k:1", *FIELDS)
texts = st.one_of(st.text(max_size=20), st.sampled_from(["", "k", "\ud800", "\x1b[2J", "../..", "\0"]))
real_start = encode(
    StartKernel(
        kernel_id="k",
        launch_id="1",
        request=Request(),
        owner=Owner(user="ada"),
        argv=("/bin/false",),
        env={},
        cwd="/",
        connection=Connection(),
        launch_timeout_s=0.1,
    )
)
starts = st.dictionaries(st.sampled_from(list(real_start)), values, min_size=1, max_size=2).map(
    lambda changes: {**real_start, **changes, "argv": ["/bin/false"]}
)
"""Start requests with one or two changed fields. The command is always `/bin/false`."""
arguments = st.one_of(values, starts, st.dictionaries(st.sampled_from(FIELDS), values, max_size=4))
names = st.sampled_from(sorted({*OPERATIONS, *AGENTS_OPERATIONS} - {"leave", "add_policy"}))
calls = st.fixed_dictionaries({"id": values, "op": st.one_of(names, texts), "args": arguments})
messages = st.one_of(
    st.binary(max_size=200), st.one_of(values, calls).map(lambda value: json.dumps(value).encode())
)


class Attacker:
    """A client with valid keys that sends messages of any form."""

    def __init__(self, folder: Path) -> None:
        announced: Any = read_json(folder / "ready.json")
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        if keys := announced.get("keys"):
            self._socket.curve_serverkey = keys["server"].encode()
            self._socket.curve_publickey, self._socket.curve_secretkey = (
                keys[name].encode() for name in ("public", "secret")
            )
        self._socket.connect(announced["endpoint"])
        self.process = psutil.Process(announced["pid"])
        self.before_bytes = self.process.memory_info().rss

    def send(self, message: bytes) -> None:
        self._socket.send(message)

    def check(self, operation: str) -> None:
        """Check that the process still answers a well-formed call, and that its memory has not grown."""
        self._socket.send(json.dumps({"id": "check", "op": operation, "args": {}}).encode())
        while True:
            assert self._socket.poll(ANSWER_MS), "no answer"
            if json.loads(self._socket.recv()).get("id") == "check":
                break
        assert self.process.memory_info().rss < self.before_bytes + GROWS_BYTES

    def close(self) -> None:
        self._socket.close()
        self._context.term()


async def test_messages_of_any_form(client: Client, settled_runtime_dir: Path) -> None:
    kernel = await client.start(tiny())
    service = next(settled_runtime_dir.glob("scheduler-*"))
    attackers = {"kernels": Attacker(service), "list": Attacker(agent_folder(settled_runtime_dir))}

    try:
        for batch in draw_inputs(st.lists(messages, min_size=BATCH, max_size=BATCH), INPUTS // 25):
            for operation, attacker in attackers.items():
                for message in batch:
                    attacker.send(message)
                attacker.check(operation)
    finally:
        for attacker in attackers.values():
            attacker.close()
    for log in settled_runtime_dir.glob("*/log"):
        assert "operation failed" not in log.read_text(), "a message has raised what no client understands"
    assert daemon_pids(settled_runtime_dir, "agent") == [attackers["list"].process.pid]
    assert daemon_pids(settled_runtime_dir, "scheduler") == [attackers["kernels"].process.pid]
    assert kernel.id in [each.id for each in await client.kernels()]
    for each in await client.kernels():
        await client.stop(each.id, grace_s=0)
