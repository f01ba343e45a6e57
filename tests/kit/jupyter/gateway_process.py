"""`roost gateway` as a process, and people who use it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from server import JupyterServer, execute
from tornado.httpclient import AsyncHTTPClient

from kit.jupyter.kernelspecs import kernelspecs
from kit.machine.daemons import settle
from roost.scheduler.client.client import connect, disconnect
from roost.testing.deadlines import allow_s, until

CONFIG = """
c.RoostGateway.shared_accounts = ["local"]
c.RoostGateway.client_envs = ["COLOUR"]
c.RoostGateway.inherited_envs = ["IPYTHONDIR", "JUPYTER_*", "PYTHON*"]
c.RoostExtension.warm_up = False
c.ServerApp.allow_root = True
"""


@dataclass
class Process:
    """A gateway that runs, and its log."""

    process: asyncio.subprocess.Process
    log: Path

    async def end(self, signum: int) -> None:
        self.process.send_signal(signum)
        await asyncio.wait_for(self.process.wait(), allow_s(30))


@contextmanager
def gateway_folder(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder with a kernelspec, which is also the gateway's home. Its kernels end with the block."""
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "s3cret")
    kernelspecs(tmp_path, "roosted")
    yield tmp_path
    for kernel in connect("local").kernels().result(allow_s(10)):
        connect("local").stop(kernel.id).result(allow_s(20))
    disconnect()
    settle(runtime_dir)


async def run(*words: str) -> str:
    """Run a `roost` command, and return its output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "roost",
        *words,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await asyncio.wait_for(process.communicate(), allow_s(60))
    assert process.returncode == 0, out.decode()
    return out.decode()


async def add_token(person: str) -> str:
    return str(json.loads(await run("gateway", "token", "add", person, "--json"))["token"])


@asynccontextmanager
async def serve(folder: Path, port: int, number: int = 1, *, more: str = "") -> AsyncIterator[Process]:
    """Start a gateway, which may have to wait for another one. `more` are lines of its configuration."""
    (folder / "roost_gateway_config.py").write_text(f"{CONFIG}c.ServerApp.port = {port}\n{more}\n")
    command = [sys.executable, "-m", "roost", "gateway"]
    async with run_gateway(command, folder / f"gateway-{number}.log", cwd=folder) as gateway:
        yield gateway


@asynccontextmanager
async def run_gateway(
    command: Sequence[str], log: Path, *, cwd: Path | None = None
) -> AsyncIterator[Process]:
    """Run the command of a gateway. Its output is added to `log`."""
    with log.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file, cwd=cwd, start_new_session=True,
        )  # fmt: skip
    try:
        yield Process(process, log)
    except BaseException:
        print(log.read_text())
        raise
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), allow_s(30))


async def until_it_serves(gateway: Process, port: int) -> None:
    async def answers() -> bool:
        assert gateway.process.returncode is None, gateway.log.read_text()
        try:
            answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/api", raise_error=False)
        except ConnectionError:
            return False
        return answer.code == 200

    await until(answers, lambda: f"the gateway serves: {gateway.log.read_text()}", 30, 0.05)


def a_laptop(port: int, token: str) -> JupyterServer:
    return JupyterServer(pid=0, port=port, token=token, log=[])


async def run_cell(laptop: JupyterServer, kernel_id: str, code: str) -> str:
    async with laptop.channels(kernel_id) as socket:
        return "".join(each.text for each in await execute(socket, code))


async def start(laptop: JupyterServer, **env: str) -> str:
    status, kernel = await laptop.api("POST", "kernels", {"name": "roosted", "env": env})
    assert status == 201, kernel
    return str(kernel["id"])


async def list_owners() -> dict[str, str]:
    """Return whose kernels they are, as the service knows it."""
    return {each.id: each.owner.user for each in await connect("local").kernels()}
