"""`roost gateway` with a real JupyterHub as its source of users: `pytest -m long tests/servers/test_hub.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tornado.httpclient import AsyncHTTPClient

from kit.jupyter.gateway_process import (
    a_laptop,
    gateway_folder,
    list_owners,
    run_cell,
    serve,
    start,
    until_it_serves,
)
from kit.jupyter.hub import run_hub, why_not
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import until

pytestmark = pytest.mark.long
CONFIG = """
c.RoostGateway.users = "hub"
c.RoostGateway.hub_url = {url!r}
c.RoostGateway.hub_service = "gateway"
"""


@pytest.fixture
def folder(runtime_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if reason := why_not():
        pytest.skip(reason)
    with gateway_folder(runtime_dir, tmp_path, monkeypatch) as made:
        yield made


async def test_a_hub_says_who_calls(folder: Path) -> None:
    port = free_port()

    async def ask(token: str) -> int:
        headers = {"Authorization": f"token {token}"}
        url = f"http://127.0.0.1:{port}/api/me"
        return int((await AsyncHTTPClient().fetch(url, headers=headers, raise_error=False)).code)

    async with run_hub(folder) as hub, serve(folder, port, more=CONFIG.format(url=hub.url)) as gateway:
        await until_it_serves(gateway, port)
        tokens = {person: await hub.make_token(person) for person in ("ada", "eve")}
        ada, eve = (a_laptop(port, token) for token in tokens.values())
        adas, eves = await start(ada), await start(eve)
        assert await list_owners() == {adas: "ada", eves: "eve"}
        assert [each["id"] for each in (await eve.api("GET", "kernels"))[1]] == [eves]
        assert await run_cell(ada, adas, "print(6 * 7)") == "42\n"
        assert await ask("x" * 40) == 401
        assert await ask(hub.service_token) == 403, "a service is no person, whatever its name"
        assert await ask(await hub.make_token("ada", "self")) == 403
        assert await ask(await hub.make_token("ada", "self", "access:services!service=other")) == 403
        only = await hub.make_token("ada", "read:users:name!user", "access:services!service=gateway")
        assert await ask(only) == 200
        await hub.ask("DELETE", "users/eve")

        async def is_unknown() -> bool:
            return await ask(tokens["eve"]) == 401

        await until(is_unknown, "a person who was deleted is unknown", 40, 1)
        assert await ask(tokens["ada"]) == 200
    # Without the hub, nobody is let in.
