"""A real JupyterHub in an environment of its own, without a proxy for browsers: people, services and their tokens."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tornado.httpclient import AsyncHTTPClient

from kit.jupyter.downloads import cache, keep, pip
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import allow_s, until

_HUB = "jupyterhub==5.4.3"
_ADMIN, _SERVICE = "t" * 40, "s" * 40
"""The tokens of the test, and of a service that has the name of a person."""
_CONFIG = """
from jupyterhub.proxy import Proxy

class NoProxy(Proxy):
    async def add_route(self, routespec, target, data): ...
    async def delete_route(self, routespec): ...
    async def get_all_routes(self): return {{}}

c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{port}"
c.JupyterHub.bind_url = "http://127.0.0.1:{other}"
c.JupyterHub.db_url = "sqlite:///{folder}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{folder}/cookie_secret"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [
    {{"name": "gateway", "url": "http://127.0.0.1:{other}", "api_token": "g" * 40}},
    {{"name": "other", "url": "http://127.0.0.1:{other}", "api_token": "o" * 40}},
    {{"name": "ada", "api_token": "{service}"}},
    {{"name": "tests", "api_token": "{admin}"}},
]
c.JupyterHub.load_roles = [
    {{"name": "server", "scopes": ["inherit"]}},
    {{"name": "user", "scopes": ["self", "access:services!service=gateway", "access:services!service=other"]}},
    {{"name": "tests", "services": ["tests"], "scopes": ["admin:users", "tokens", "access:services", "self"]}},
]
"""


def why_not() -> str | None:
    """Install JupyterHub, if it is not in the cache. Return why it is missing, in one sentence, or None."""
    return keep(f"hub_{_HUB}", _install)


def _install(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=allow_s(100))
    pip("install", _HUB, python=str(folder / "bin" / "python"))


@dataclass
class Hub:
    """A hub that runs."""

    url: str
    """The address of its API."""
    service_token: str = _SERVICE
    """The token of a service that is called ada."""

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """Send a request as an administrator. Return the decoded answer, or None."""
        answer = await AsyncHTTPClient().fetch(
            f"{self.url}/{path}",
            method=method,
            headers={"Authorization": f"token {_ADMIN}"},
            body=None if body is None else json.dumps(body),
            request_timeout=allow_s(20),
        )
        return json.loads(answer.body) if answer.body else None

    async def make_token(self, person: str, *scopes: str) -> str:
        """Return a new token of a person: with all that she may do, or with these scopes alone."""
        body = {"scopes": scopes} if scopes else {}
        return str((await self.ask("POST", f"users/{person}/tokens", body))["token"])


@asynccontextmanager
async def run_hub(folder: Path) -> AsyncIterator[Hub]:
    """Run a hub with the people ada and eve."""
    port, python = free_port(), cache() / f"hub_{_HUB}" / "bin" / "python"
    config = folder / "jupyterhub_config.py"
    config.write_text(
        _CONFIG.format(port=port, other=free_port(), folder=folder, service=_SERVICE, admin=_ADMIN)
    )
    hub = Hub(f"http://127.0.0.1:{port}/hub/api")
    with (folder / "hub.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(str(python), "-m", "jupyterhub", "-f", str(config)),
            stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
    text = folder / "hub.log"

    async def answers() -> bool:
        assert process.returncode is None, text.read_text()
        try:
            return bool(await hub.ask("GET", ""))
        except OSError:
            return False

    try:
        await until(answers, lambda: f"the hub answers: {text.read_text()}", 60, 0.1)
        for person in ("ada", "eve"):
            await hub.ask("POST", f"users/{person}", {})
        yield hub
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), allow_s(30))
