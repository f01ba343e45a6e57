"""The operator's hand: a private Unix socket of the running gateway, and its client in the `roost` command.

Only the gateway's own account can connect with it. It lists and ends the kernels of all people.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from roost.scheduler.client.client import user_folder
from roost.scheduler.errors import BackendUnavailable, RoostError

_FOLDER = "gateway"
"""The folder of the sockets in the runtime folder. The path of a socket must be short."""
_ANSWER_S = 60.0
"""How long the gateway may take to end the kernels of a person."""


def open_socket(kernels: Any, name: str) -> Any:
    """Listen on the socket of this name, and return the server. `kernels` is the kernel manager."""
    from tornado.httpserver import HTTPServer
    from tornado.netutil import bind_unix_socket
    from tornado.web import Application, RequestHandler

    class KernelsHandler(RequestHandler):
        def get(self) -> None:
            self.finish({"kernels": [_describe(kernels, each) for each in kernels.list_kernel_ids()]})

        async def delete(self) -> None:
            user = self.get_query_argument("user")
            records = kernels.gateway.own.records
            found = [
                each for each in kernels.list_kernel_ids() if each in records and records[each].user == user
            ]
            for kernel_id in filter(kernels.has, found):  # its person may have ended it meanwhile
                kernels.gateway.audit.write(
                    "admin", person="the operator", kernel=kernel_id, sentence="end a kernel"
                )
                await kernels.shutdown_kernel(kernel_id)
            self.finish({"stopped": found})

    server = HTTPServer(Application([("/kernels", KernelsHandler)]))
    server.add_socket(bind_unix_socket(str(user_folder(_FOLDER) / name), mode=0o600))
    return server


def _describe(kernels: Any, kernel_id: str) -> dict[str, Any]:
    record = kernels.gateway.own.records.get(kernel_id)
    facts = (
        {} if record is None else {"user": record.user, "person": record.person, "backend": record.backend}
    )
    return {**json.loads(json.dumps(kernels.kernel_model(kernel_id), default=str)), **facts}


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_ANSWER_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_ANSWER_S)
        self.sock.connect(str(self._path))


def list_kernels() -> list[dict[str, Any]]:
    """Return the kernels of all people. Raises `RoostError` if no gateway of this user answers."""
    return [kernel for answer in _ask("GET", "/kernels") for kernel in answer["kernels"]]


def stop_kernels(user: str) -> list[str]:
    """End the kernels of a user, and return their ids. Raises `RoostError` if no gateway of this user answers."""
    return [each for answer in _ask("DELETE", f"/kernels?user={quote(user)}") for each in answer["stopped"]]


def _ask(method: str, path: str) -> Iterator[dict[str, Any]]:
    """Yield the answer of each gateway of this user that runs."""
    has_answered = False
    for file in sorted(user_folder(_FOLDER).iterdir()):
        try:
            with closing(_Connection(file)) as connection:
                connection.request(method, path)
                answer = connection.getresponse()
                body = answer.read()
        except ConnectionRefusedError:
            continue  # an earlier gateway has left its socket
        except (OSError, http.client.HTTPException) as problem:
            raise BackendUnavailable(f"The gateway at {file} does not answer: {problem}.") from None
        if answer.status != 200:
            raise RoostError(f"The gateway at {file} has answered with {answer.status}: its log says why.")
        has_answered = True
        yield cast("dict[str, Any]", json.loads(body))
    if not has_answered:
        raise BackendUnavailable("No gateway of this user runs: start it with `roost gateway`.")
