"""`roost gateway` as a process, with real kernels: two people, a second gateway that takes over, and the operator."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kit.jupyter.front_end import front_end, states
from kit.jupyter.gateway_process import (
    a_laptop,
    add_token,
    gateway_folder,
    list_owners,
    run,
    run_cell,
    serve,
    start,
    until_it_serves,
)
from kit.jupyter.restarted_servers import has_begun, shown
from roost.scheduler.client.client import connect
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until


@pytest.fixture
def folder(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with gateway_folder(runtime_dir, tmp_path, monkeypatch) as made:
        yield made


SHOW = "import os; print(*(os.environ.get(name) for name in ('KERNEL_USERNAME', 'COLOUR', 'SECRET_OF_THE_GATEWAY')))"


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
        assert (await ada.api("POST", f"kernels/{adas}/restart", {}))[0] == 200
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


@pytest.mark.long
async def test_gateways_that_are_killed_inside_a_printing_cell_lose_nothing(folder: Path) -> None:
    """Twenty gateways end by `kill -9` at random moments, each beside two cells that print."""
    port, random = free_port(), Random(71)
    laptops = {person: a_laptop(port, await add_token(person)) for person in ("ada", "eve")}
    numbers = "".join(f"{number}\n" for number in range(40))
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(serve(folder, port))
        await until_it_serves(gateway, port)
        kernels = {person: await start(laptop, COLOUR=person) for person, laptop in laptops.items()}
        for turn in range(20):
            successor = await stack.enter_async_context(serve(folder, port, turn + 2))
            log = successor.log
            await until(lambda log=log: "waits for its end" in log.read_text(), "it waits", 30, 0.05)
            code = f"turn = {turn}\nimport time\nfor each in range(40): print(each, flush=True); time.sleep(0.05)"
            before = {}
            async with AsyncExitStack() as fronts:
                for person, laptop in laptops.items():
                    front = await fronts.enter_async_context(front_end(laptop, kernels[person], person))
                    cell = await front.run(code)
                    await front.until(lambda front=front, cell=cell: has_begun(front, cell))
                    before[person] = front, cell
                await asyncio.sleep(random.uniform(0, 1.5))
                await gateway.end(signal.SIGKILL)
            gateway = successor
            await until_it_serves(gateway, port)
            for person, laptop in laptops.items():
                front, cell = before[person]
                async with front_end(laptop, kernels[person], person) as after:
                    await after.ended(cell)
                    assert shown([*front.about(cell), *after.about(cell)]) == numbers
                assert await run_cell(laptop, kernels[person], "print(turn)") == f"{turn}\n"
            restarted, killed = ("ada", "eve") if turn % 2 else ("eve", "ada")
            status, _ = await laptops[restarted].api("POST", f"kernels/{kernels[restarted]}/restart", {})
            assert status == 200
            async with front_end(laptops[killed], kernels[killed], killed) as front:
                await front.run("import os; os.kill(os.getpid(), 9)")
                await front.until(lambda front=front: "restarting" in states(front.messages))
            for person, laptop in laptops.items():
                assert await run_cell(laptop, kernels[person], SHOW) == f"{person} {person} None\n"
            assert await list_owners() == {kernel_id: person for person, kernel_id in kernels.items()}


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
