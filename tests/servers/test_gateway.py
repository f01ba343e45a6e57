"""`roost gateway` as a process, with real kernels: two people, a second gateway that takes over, and the operator."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from server import JupyterServer, execute
from tornado.httpclient import AsyncHTTPClient

from kit.jupyter.kernelspecs import kernelspecs
from kit.machine.daemons import settle
from roost.scheduler.client.client import connect, disconnect
from roost.testing.clusters.free_ports import free_port
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


@pytest.fixture
def folder(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder with a kernelspec, which is also the gateway's home."""
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
async def serve(folder: Path, port: int, number: int = 1) -> AsyncIterator[Process]:
    """Start a gateway, which may have to wait for another one."""
    (folder / "roost_gateway_config.py").write_text(f"{CONFIG}c.ServerApp.port = {port}\n")
    log = folder / f"gateway-{number}.log"
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "roost", "gateway",
            stdin=asyncio.subprocess.DEVNULL, stdout=file, stderr=file, cwd=folder, start_new_session=True,
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


SHOW = "import os; print(*(os.environ.get(name) for name in ('KERNEL_USERNAME', 'COLOUR', 'SECRET_OF_THE_GATEWAY')))"


async def list_owners() -> dict[str, str]:
    """Return whose kernels they are, as the service knows it."""
    return {each.id: each.owner.user for each in await connect("local").kernels()}


async def test_two_people_and_a_second_gateway(folder: Path) -> None:
    """The second gateway waits, takes over after `kill -9`, and knows people and variables."""
    port = free_port()
    ada, eve = [a_laptop(port, await add_token(person)) for person in ("ada", "eve")]
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(serve(folder, port))
        await until_it_serves(first, port)
        assert "run on one account" in first.log.read_text().splitlines()[0]
        second = await stack.enter_async_context(serve(folder, port, 2))
        await until(
            lambda: "waits for its end" in second.log.read_text(), "the second gateway waits", 30, 0.05
        )
        adas, eves = await start(ada, COLOUR="red", KERNEL_USERNAME="ada"), await start(eve)
        assert await run_cell(ada, adas, f"x = 41\n{SHOW}") == "ada red None\n"
        assert await run_cell(eve, eves, SHOW) == "eve None None\n"
        assert [each["id"] for each in (await eve.api("GET", "kernels"))[1]] == [eves]
        assert await list_owners() == {adas: "ada", eves: "eve"}
        await first.end(signal.SIGKILL)
        await until_it_serves(second, port)
        assert await run_cell(ada, adas, "print(x + 1)") == "42\n"
        assert (await eve.api("GET", f"kernels/{adas}"))[0] == 404
        assert (await ada.api("POST", f"kernels/{adas}/restart"))[0] == 200
        assert await run_cell(ada, adas, SHOW) == "ada red None\n"
        owners = await list_owners()
        assert owners == {adas: "ada", eves: "eve"}
        listed = json.loads(await run("gateway", "kernels", "--json"))["kernels"]
        assert {each["id"]: each["user"] for each in listed} == owners
        assert eves in await run("stop", "--user", "eve")
        assert (await eve.api("GET", "kernels"))[1] == []
        assert [each["id"] for each in (await ada.api("GET", "kernels"))[1]] == [adas]
        await second.end(signal.SIGTERM)
        assert await list_owners() == {adas: "ada"}
    text = (folder / "state/roost/gateway/audit.jsonl").read_text()
    what = {json.loads(line)["what"] for line in text.splitlines()}
    assert {"token added", "start", "connection", "takeover", "restart", "admin", "end"} <= what
    assert ada.token not in text
    assert '"red"' not in text


async def test_a_start_is_taken_back_if_its_client_goes(folder: Path) -> None:
    settings: dict[str, Any] = {"RoostLocalBackend": {"cpus": 2}}
    (folder / "jupyter_roost_config.json").write_text(json.dumps(settings))
    port = free_port()
    ada = a_laptop(port, await add_token("ada"))
    async with serve(folder, port) as gateway:
        await until_it_serves(gateway, port)
        body = json.dumps({"name": "roosted"}).encode()
        head = (
            f"POST /api/kernels HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {ada.token}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()
        file = folder / "state/roost/gateway/audit.jsonl"

        def is_taken_back() -> bool:
            outcomes = [json.loads(line) for line in file.read_text().splitlines()]
            return any(each["what"] == "start" and each["outcome"] == "taken back" for each in outcomes)

        await until(is_taken_back, lambda: f"the start is taken back: {file.read_text()}", 30, 0.05)
        assert (await ada.api("GET", "kernels"))[1] == []

        async def is_empty() -> bool:
            return not await connect("local").kernels()

        await until(is_empty, "the service has no kernel", 20, 0.05)


async def test_a_wrong_configuration_is_one_sentence(folder: Path) -> None:
    for text, words in (
        ("c.RoostGateway.user = 'file'", "did you mean users"),
        ("c.RoostGateway.users = 'ldap'", "one of file, header, hub, trust"),
        ("c.RoostGateway.users = 'header'", "set c.ServerApp.sock"),
        ("c.RoostGateway.users = 'hub'", "needs c.RoostGateway.hub_url"),
        ("c.ServerApp.ip = '0.0.0.0'", "Without TLS"),
        ("c.RoostGateway.users = 'trust'\nc.ServerApp.allow_origin = '*'", "every web site"),
        ("1 / 0", "ZeroDivisionError"),
    ):
        (folder / "roost_gateway_config.py").write_text(text)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "roost",
            "gateway",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), allow_s(60))
        assert process.returncode == 2, err.decode()
        lines = [line for line in err.decode().splitlines() if line.startswith("roost: ")]
        assert len(lines) == 1, err.decode()
        assert words.lower() in lines[0].lower(), lines
        assert b"Traceback" not in out + err
