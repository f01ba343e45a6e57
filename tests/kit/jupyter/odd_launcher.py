"""A small launcher that answers a server as those of Enterprise Gateway do, and has a fault on demand.

Its kernel is an ipykernel that listens before the answer names its ports. A thread listens for requests. `ANSWER` seals
any answer, for forged ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

from roost.launchers.agent.machine import ports
from roost.launchers.protocol.messages import Connection
from roost.testing.deadlines import allow_s

ANSWER = r"""
import base64, json, os
from Crypto.Cipher import AES, PKCS1_v1_5
from Crypto.PublicKey import RSA
from Crypto.Util.Padding import pad


def encode(content):
    return base64.b64encode(content).decode()


def seal(info, public_key, version=1):
    key = os.urandom(16)
    body = AES.new(key, AES.MODE_ECB).encrypt(pad(json.dumps(info).encode(), 16))
    sealed = PKCS1_v1_5.new(RSA.import_key(base64.b64decode(public_key))).encrypt(key)
    payload = {"version": version, "key": encode(sealed), "conn_info": encode(body)}
    return base64.b64encode(json.dumps(payload).encode())


def seal_old(info, kernel_id):
    text = json.dumps(info).encode()
    return base64.b64encode(AES.new(kernel_id[:16].encode(), AES.MODE_ECB).encrypt(text + b"%" * (-len(text) % 16)))
"""
_LAUNCHER = (
    ANSWER
    + r"""
import signal, socket, sys, threading

fault, kernel_id, address, public_key = sys.argv[1:]
file = os.path.abspath("odd.json")
if fault == "dies":
    sys.exit("no luck today")
if fault == "ends":
    sys.exit(0)
comm = socket.create_server(("127.0.0.1", 0))


def send(content):
    host, port = address.split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(content)


def serve():
    while True:
        with comm.accept()[0] as connection:
            request = json.loads(connection.makefile().read() or "{}")
        if "signum" in request:
            os.kill(os.getpid(), request["signum"])


if fault == "waits":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    print("waits", flush=True)
    signal.sigwait([signal.SIGUSR1])
if fault in ("hangs", "late", "silent"):
    from jupyter_client.connect import write_connection_file

    unheard = {name: socket.socket() for name in ("shell", "iopub", "stdin", "control", "hb")}
    for one in unheard.values():
        one.bind(("", 0))
    ports = {f"{name}_port": one.getsockname()[1] for name, one in unheard.items()}
    _, info = write_connection_file(file, ip="0.0.0.0", key=os.urandom(16).hex().encode(), **ports)
else:
    from ipykernel.kernelapp import IPKernelApp

    app = IPKernelApp.instance()
    app.initialize(["-f", file, "--ip=0.0.0.0"])
    with open(file) as written:
        info = json.load(written)
info |= {"kernel_id": kernel_id, "comm_port": comm.getsockname()[1], "pid": str(os.getpid())}
if fault == "late":
    signal.signal(signal.SIGTERM, lambda *_: send(seal(info, public_key)))
if fault in ("hangs", "late"):
    while True:
        signal.pause()
if fault == "old":
    send(seal_old(info, kernel_id))
    signal.pause()
if fault != "deaf":
    threading.Thread(target=serve, daemon=True).start()
send(seal(info, public_key))
if fault == "silent":
    signal.pause()
if fault == "twice":
    send(seal(info, public_key))
if fault == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
app.start()
if fault == "stubborn":
    signal.pause()
"""
)


def odd_launcher(fault: str = "") -> list[str]:
    """Return the command of a launcher with a fault, as in a kernelspec.

    `dies`: it exits with 7 before it answers. `ends`: with 0. `hangs`: it never answers. `late`: it answers when it
    has to end. `old`: it answers in version 0. `silent`: its kernel never listens. `twice`: it answers twice. `deaf`:
    it takes no requests. `stubborn`: only SIGKILL ends it. `waits`: it answers after SIGUSR1.
    """
    places = ("{kernel_id}", "{response_address}", "{public_key}")
    return [sys.executable, "-c", _LAUNCHER, fault, *places]


def bridge_command(launcher: list[str]) -> list[str]:
    """Return the command of a kernelspec that keeps a launcher."""
    return [sys.executable, "-m", "roost.launchers.bridge", "{connection_file}", *launcher]


@dataclass(frozen=True, slots=True)
class Bridged:
    """A bridge that runs without roost's agent."""

    process: subprocess.Popen[bytes]
    chosen: Connection
    connection: dict[str, Any]
    """The content of the connection file."""
    folder: Path

    @property
    def log(self) -> str:
        """All that the bridge and its launcher have printed."""
        return (self.folder / "log").read_text()

    def wait(self) -> int:
        """Wait until the bridge has ended, and return its exit code."""
        return self.process.wait(allow_s(60))

    def descendants(self) -> list[psutil.Process]:
        """Return the processes below the bridge."""
        return psutil.Process(self.process.pid).children(recursive=True)

    @contextlib.contextmanager
    def client(self) -> Iterator[BlockingKernelClient]:
        """Wait until the kernel listens, and yield a client."""
        asyncio.run(asyncio.wait_for(self._until_listening(), allow_s(60)))
        client = BlockingKernelClient()
        client.load_connection_info(self.connection)
        client.start_channels()
        try:
            client.wait_for_ready(timeout=allow_s(60))
            yield client
        finally:
            client.stop_channels()

    async def _until_listening(self) -> None:
        listening = asyncio.ensure_future(ports.until_listening(self.chosen))
        while not listening.done():
            assert self.process.poll() is None, self.log
            await asyncio.wait([listening], timeout=0.05)


@contextlib.contextmanager
def bridged(
    folder: Path, launcher: list[str], *, timeout_s: float = 600.0, transport: str = "tcp"
) -> Iterator[Bridged]:
    """Run a bridge, and end it. A test with the fixture `runtime_dir` fails if a process of the launcher is left."""
    ip = "127.0.0.1" if transport == "tcp" else str(folder / "s")
    with ports.claim(Connection(transport=transport, ip=ip)) as chosen:
        names = {name: getattr(chosen, name) for name in ports.PORT_NAMES}
        path = folder / "kernel-0123456789abcdef0123.json"
        _, connection = write_connection_file(
            str(path), ip=ip, key=b"outer key", transport=transport, **names
        )
        command = [part.replace("{connection_file}", str(path)) for part in bridge_command(launcher)]
        environment = {**os.environ, "KERNEL_LAUNCH_TIMEOUT": str(timeout_s)}
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True, cwd=folder
            )
        run = Bridged(process, chosen, {**connection, "key": "outer key"}, folder)
        try:
            yield run
        finally:
            process.terminate()
            run.wait()


def load_seal() -> dict[str, Callable[..., bytes]]:
    """Return the functions `seal` and `seal_old`, by name."""
    names: dict[str, Any] = {}
    exec(ANSWER, names)
    return {name: names[name] for name in ("seal", "seal_old")}


def an_answer(kernel_id: str, /, **changes: Any) -> dict[str, Any]:
    """Return the fields of an answer."""
    listed = {name: 5_000 + number for number, name in enumerate(ports.PORT_NAMES)}
    fields = {
        "kernel_id": kernel_id,
        "comm_port": 5_010,
        "key": "0123456789abcdef",
        "ip": "0.0.0.0",
        "pid": "42",
    }
    return {**listed, **fields, "transport": "tcp", "signature_scheme": "hmac-sha256", **changes}
