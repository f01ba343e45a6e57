"""Another user of the machine gets nothing: no file, no socket, no port, no process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from kit.jupyter.notebook import Notebook
from kit.machine.live_folders import walk
from kit.machine.other_user import claimed_by_another_user
from kit.machine.tiny_kernel import tiny
from roost.launchers.agent.machine import ports
from roost.scheduler.client.client import Client
from roost.testing.deadlines import allow_s
from roost.testing.leftovers import processes

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

OTHER = 65534
STRANGER = """
import json, os, socket, sys
import zmq

found, user = json.loads(sys.argv[1]), int(sys.argv[2])
zmq.Context().term()  # its files are read as root, because the other user may not read this Python
os.setgroups([])
os.setgid(user)
os.setuid(user)
got = []

def trying(what, action):
    try:
        if (result := action()) is not False:
            got.append([what, repr(result)[:100]])
    except (OSError, zmq.ZMQError):
        pass

def read(path):
    with open(path, "rb") as file:
        return bool(file.read(1)) and path

def connect(path):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)
        return path

def ask(port, **options):
    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        for name, value in options.items():
            setattr(dealer, name, value)
        dealer.connect(f"tcp://127.0.0.1:{port}")
        header = b'{"msg_type": "kernel_info_request", "msg_id": "1", "session": "s", "username": "", "version": "5.3"}'
        dealer.send_multipart([b"<IDS|MSG>", b"", header, b"{}", b"{}", b"{}"])
        dealer.send(b'{"id": 1, "op": "list", "args": {}}')
        return bool(dealer.poll(500))

def listen(port):
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.linger = 0
        sub.subscribe(b"")
        sub.connect(f"tcp://127.0.0.1:{port}")
        return bool(sub.poll(500))

for folder in found["folders"]:
    trying(f"list {folder}", lambda: os.listdir(folder))
    trying(f"write in {folder}", lambda: open(folder + "/x", "w"))
for path in found["files"]:
    trying(f"read {path}", lambda: read(path))
for path in found["sockets"]:
    trying(f"connect {path}", lambda: connect(path))
for port in found["ports"]:
    trying(f"ask {port}", lambda: ask(port))
    public, secret = zmq.curve_keypair()
    keys = {"curve_publickey": public, "curve_secretkey": secret, "curve_serverkey": zmq.curve_keypair()[0]}
    trying(f"ask {port} with other keys", lambda: ask(port, **keys))
    trying(f"listen at {port}", lambda: listen(port))
for pid in found["pids"]:
    for name in ("environ", "mem", "maps", "fd/1"):
        trying(f"read {name} of {pid}", lambda: read(f"/proc/{pid}/{name}"))
    trying(f"signal {pid}", lambda: os.kill(pid, 0))
print(json.dumps(got))
"""


def ask(question: Callable[[], list[Any]]) -> list[Any]:
    """Return the result of a question about a process; empty if the process has ended, as a replaced spare does."""
    try:
        return question()
    except psutil.NoSuchProcess:
        return []


async def test_another_user_gets_nothing(roost_by_default: None, settled_runtime_dir: Path) -> None:
    notebook = Notebook()
    await notebook.open()
    await notebook.run("secret = 42")
    ours = [psutil.Process(notebook.pid), *processes(str(settled_runtime_dir))]
    connections = [each for process in ours for each in ask(process.net_connections)]
    held = [each for each in connections if each.status == psutil.CONN_LISTEN]
    entries = list(walk(settled_runtime_dir))
    found = {
        "folders": [str(settled_runtime_dir), *(str(path) for path in entries if path.is_dir())],
        "files": [str(path) for path in entries if path.is_file()],
        "sockets": [str(path) for path in entries if path.is_socket()],
        "ports": sorted({each.laddr.port for each in held}),
        "pids": [process.pid for process in ours],
    }
    assert min(map(len, found.values())) >= 2, found
    command = [sys.executable, "-c", STRANGER, json.dumps(found), str(OTHER)]
    done = await asyncio.to_thread(
        subprocess.run, command, cwd="/", capture_output=True, text=True, timeout=allow_s(100)
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []
    commands = [" ".join(ask(process.cmdline)) for process in ours]
    keys = [json.loads(path.read_text()) for path in entries if path.match("kernel-*.json")]
    for secret in (each["key"] for each in keys):
        assert secret
        assert not [line for line in commands if secret in line], "everybody can read command lines"
    assert await notebook.value("secret") == "42"
    await notebook.close()


async def test_another_user_stops_no_start(client: Client, settled_runtime_dir: Path) -> None:
    """The other user has taken all names that claim ports."""
    names = [f"roost-port-{port}" for port in ports._candidates()]
    with claimed_by_another_user(names):
        kernel = await client.start(tiny())
        assert kernel.connection is not None
        assert kernel.connection.shell_port in ports._candidates()
        await client.stop(kernel.id, grace_s=0)
