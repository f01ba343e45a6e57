"""A gateway inside the test's process, with a fake service: its kernels wait without end unless the test answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_server.gateway.gateway_client import GatewayClient
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port
from tornado.websocket import websocket_connect

from kit.fakes.service import FakeService
from roost.provisioners.gateway.kernels import GatewayKernels
from roost.provisioners.gateway.server import GatewayApp, UserRules
from roost.provisioners.gateway.token_file import TokenFile
from roost.scheduler.errors import NotAllowed
from roost.testing.deadlines import allow_s

CONFIG = """
c.RoostGateway.shared_accounts = ["local"]
c.RoostGateway.admins = ["root"]
c.RoostExtension.warm_up = False
"""


def check_user(user: str, kernel_name: str) -> None:
    """Let eve start no kernels of the kernelspec `private`."""
    if user == "eve" and kernel_name == "private":
        raise NotAllowed(f"user {user!r} may not start kernels of the kernelspec {kernel_name!r}.")


@dataclass
class Answer:
    """The answer to a request."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass
class RunningGateway:
    """A gateway that serves, and the requests of its people. `tokens` has a token of each."""

    app: Any
    port: int
    tokens: dict[str, str]
    received: dict[str, list[bytes]] = field(default_factory=dict)
    """All that each person has received."""

    async def ask(
        self,
        person: str,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        has_token: bool = True,
    ) -> Answer:
        """Send one request as a person. A path that ends with `/channels` is a websocket's."""
        given = dict(headers or {})
        if has_token and person:
            given["Authorization"] = f"token {self.tokens[person]}"
        url = f"http://127.0.0.1:{self.port}{path}"
        text = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if path.partition("?")[0].endswith("/channels") and method == "GET":
            return await self._connect(url, given)
        asked = HTTPRequest(
            url,
            method=method,
            headers=given,
            body=text,
            allow_nonstandard_methods=True,
            follow_redirects=False,
            request_timeout=allow_s(20),
        )
        got = await AsyncHTTPClient().fetch(asked, raise_error=False)
        self.received.setdefault(person, []).append(got.body or b"")
        return Answer(status=got.code, body=got.body or b"", headers=got.headers)

    async def _connect(self, url: str, headers: Mapping[str, str]) -> Answer:
        asked = HTTPRequest(url.replace("http:", "ws:", 1), headers=headers, request_timeout=allow_s(20))
        try:
            socket = await websocket_connect(asked)
        except HTTPClientError as problem:
            return Answer(status=problem.code)
        socket.close()
        while await asyncio.wait_for(socket.read_message(), allow_s(20)) is not None:
            """The connection is closed once the gateway has answered."""
        return Answer(status=101)

    async def start(self, person: str, name: str = "roosted", **body: Any) -> str:
        """Start a kernel for a person, and return its id."""
        answer = await self.ask(person, "POST", "/api/kernels", {"name": name, **body})
        assert answer.status == 201, answer.body
        return str(answer.json["id"])

    async def open_session(self, person: str, path: str = "Untitled.ipynb") -> dict[str, Any]:
        """Open a session with a new kernel for a person."""
        body = {"path": path, "type": "notebook", "name": "", "kernel": {"name": "roosted"}}
        answer = await self.ask(person, "POST", "/api/sessions", body)
        assert answer.status == 201, answer.body
        return dict(answer.json)

    @property
    def audit(self) -> list[dict[str, Any]]:
        """The lines of the audit file."""
        file = self.app.gateway.audit.path
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def let_starts_wait(service: FakeService) -> None:
    """Let each start wait until it is withdrawn."""

    async def wait(_: object) -> None:
        await asyncio.sleep(3600)

    service.answers["start"] = wait


@asynccontextmanager
async def run_gateway(
    folder: Path,
    config: str = CONFIG,
    *,
    people: tuple[str, ...] = ("ada", "eve", "root"),
    answer_after_s: float = 0.05,
) -> AsyncIterator[RunningGateway]:
    """Run a gateway with this configuration. Each of the people has a token."""
    file = folder / "roost_gateway_config.py"
    file.write_text(config)
    tokens = {person: TokenFile().add(person, 1)[0] for person in people}
    app = GatewayApp()
    app.rules, app.file = UserRules(check_user=check_user, default_timeout_s=60.0), str(file)
    app.init_signal = app.init_resources = lambda: None  # they are of a process
    app.initialize(argv=[], find_extensions=False, new_httpserver=False)
    app.kernel_manager.answer_after_s = answer_after_s
    server, (listening, port) = HTTPServer(app.web_app), bind_unused_port()
    server.add_socket(listening)
    try:
        yield RunningGateway(app=app, port=port, tokens=tokens)
    finally:
        kernels: GatewayKernels = app.kernel_manager
        for kernel_id in kernels.list_kernel_ids():
            await asyncio.wait_for(kernels.shutdown_kernel(kernel_id, now=True), allow_s(60))
        server.stop()
        await server.close_all_connections()
        app.session_manager.close()
        app.roost.state.close()
        kernels.context.destroy(linger=0)
        GatewayClient.clear_instance()
