"""A client of one Docker engine by its Unix socket. Calls run in threads, each with a deadline."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import docker
import requests
from docker.auth import encode_header
from docker.errors import APIError, DockerException
from docker.types import CancellableStream
from docker.utils import parse_repository_tag

from roost.launchers.daemon.tasks import in_thread, start_thread
from roost.scheduler.errors import BackendUnavailable

from .credentials import CredentialsError, read_credentials
from .names import LEASE_LABEL
from .settings import SCHEME

T = TypeVar("T")
JsonObject = dict[str, Any]

_CALL_S = 20.0
_LATE_S = 5.0
"""How much later than its timeout a call may end, because it has several steps."""
_DOCKERS_WORDS = {"remove": "destroy"}
"""What Docker calls the events of Podman."""
SILENT_S = 300.0
"""How long a pull may show no progress."""


class EngineError(Exception):
    """A refusal by the engine. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message

    @property
    def is_name_taken(self) -> bool:
        """True if another container has the name. Podman answers this with status 500."""
        return self.status == 409 or "already in use" in self.message


class _Broken(Exception):
    """A stream of the engine has broken."""


class Engine:
    """A client of the engine at `address`, such as `unix:///var/run/docker.sock`. It connects with the first call."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._lock = threading.Lock()
        self._client: docker.APIClient | None = None

    async def call(self, work: Callable[[docker.APIClient], T]) -> T:
        """Return the result of `work`, run in a thread with the SDK's client.

        Raises `EngineError` for a refusal, and `BackendUnavailable`. A call that is cancelled may still be carried out.
        """
        try:
            return await in_thread(lambda: self._run(work), deadline_s=_CALL_S + _LATE_S, name="docker-call")
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"the Docker engine at {self.address} does not answer") from None

    async def describe(self) -> JsonObject:
        """Return the engine's `info`. For Podman, `Podman` is its version, and `ID`, which changes, is left out.

        Raises as `call` does.
        """

        def ask(client: docker.APIClient) -> JsonObject:
            parts = client.version().get("Components") or ()
            podman = next((part["Version"] for part in parts if part["Name"] == "Podman Engine"), "")
            info: JsonObject = client.info()
            return {**info, "ID": "", "Podman": podman} if podman else info

        return await self.call(ask)

    async def follow(self) -> AsyncGenerator[JsonObject, None]:
        """Yield the events of roost's containers, after an empty one once no later event can be missed.

        Raises `BackendUnavailable` when the engine ends the stream.
        """
        filters = {"type": "container"}  # Podman finds no label without its value
        try:
            stream = await self.call(lambda client: client.events(decode=True, filters=filters))
        except EngineError as problem:
            raise BackendUnavailable(f"the Docker engine refuses its events: {problem.message}") from None

        try:
            yield {}
            with suppress(_Broken):
                async with aclosing(_read_in_thread(lambda: stream, "docker-events")) as events:
                    async for event in events:
                        if LEASE_LABEL in event["Actor"]["Attributes"]:
                            yield {**event, "Action": _DOCKERS_WORDS.get(event["Action"], event["Action"])}
        finally:
            with suppress(Exception):  # it has ended
                stream.close()
        raise BackendUnavailable(f"the Docker engine at {self.address} has ended its stream of events")

    async def pull(self, image: str) -> AsyncGenerator[JsonObject, None]:
        """Pull an image, with the credentials of this user. Yield what the engine reports, until it has the image.

        A pull whose generator is closed is given up. Raises `EngineError` with the reason why there is no image, and
        `BackendUnavailable`.
        """

        def start() -> CancellableStream:
            return self._run(lambda client: _start_pull(client, image))

        try:
            async with aclosing(_read_in_thread(start, "docker-pull")) as lines:
                async for line in lines:
                    if problem := line.get("error"):
                        raise EngineError(500, _shorten(problem))
                    yield line
        except CredentialsError as problem:
            raise EngineError(400, str(problem)) from None
        except _Broken:
            raise BackendUnavailable(f"the Docker engine at {self.address} has ended its pull") from None

    def close(self) -> None:
        """Close the idle connections. A later call connects again."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _run(self, work: Callable[[docker.APIClient], T]) -> T:
        try:
            return work(self._connect())
        except APIError as problem:
            raise EngineError(problem.status_code or 500, _shorten(problem)) from None
        except (DockerException, requests.exceptions.RequestException, OSError) as problem:
            self.close()
            raise BackendUnavailable(self._explain(problem)) from None

    def _connect(self) -> docker.APIClient:
        with self._lock:
            if self._client is None:
                with socket.socket(
                    socket.AF_UNIX
                ) as probe:  # the SDK leaves a socket open that cannot connect
                    probe.settimeout(_CALL_S)
                    probe.connect(self.address.removeprefix(SCHEME))
                self._client = docker.APIClient(base_url=self.address, version="auto", timeout=_CALL_S)
            return self._client

    def _explain(self, problem: Exception) -> str:
        """Return why the engine cannot be reached, as a clause that says what to do."""
        if isinstance(problem, FileNotFoundError):
            return (
                f"there is no Docker engine at {self.address}: start one, or set c.RoostDockerBackend.address "
                "or DOCKER_HOST to its socket"
            )
        if isinstance(problem, PermissionError):
            return (
                f"this user may not use the Docker engine at {self.address}: ask the operator for the group of that "
                "socket, which is as much as root's password"
            )
        return f"the Docker engine at {self.address} does not answer ({_shorten(problem)})"


def _shorten(problem: Exception | str) -> str:
    text = str(getattr(problem, "explanation", "") or problem)
    return " ".join(text.split()).rstrip(".")[:500]


def _start_pull(client: docker.APIClient, image: str) -> CancellableStream:
    """Ask the engine for a pull, and return its report. The engine answers once it has found the image.

    The SDK's own `pull` cannot be cancelled, and it reads the credentials once only.
    """
    repository, tag = parse_repository_tag(image)
    credentials = read_credentials(repository)
    response = client.post(
        f"{client.base_url}/v{client.api_version}/images/create",
        params={"fromImage": repository, "tag": tag or "latest"},  # without a tag it would pull all of them
        headers={"X-Registry-Auth": encode_header(credentials)} if credentials else {},
        stream=True,
        timeout=SILENT_S,
    )
    if response.status_code >= 400:
        with response:
            raise EngineError(response.status_code, _shorten(_read_message(response.text)))
    lines = (json.loads(line) for line in response.iter_lines() if line)
    return CancellableStream(lines, response)


def _read_message(text: str) -> str:
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text


async def _read_in_thread(
    start: Callable[[], CancellableStream], name: str
) -> AsyncGenerator[JsonObject, None]:
    """Yield the items of a blocking stream, which a thread starts and reads. The stream is closed at the end.

    Raises what `start` raises, and `_Broken`.
    """
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[JsonObject | Exception | None] = asyncio.Queue()
    lock, streams, is_over = threading.Lock(), list[CancellableStream](), threading.Event()

    def put(item: JsonObject | Exception | None) -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    def close() -> None:
        with lock:
            is_over.set()
            for stream in streams:
                with suppress(Exception):  # it has ended
                    stream.close()

    def read() -> None:
        try:
            stream = start()
        except Exception as problem:  # noqa: BLE001 - it is raised in the loop
            put(problem)
            return
        with lock:
            streams.append(stream)
        if is_over.is_set():
            close()
            return
        try:
            for item in stream:
                put(item)
            put(None)
        except Exception:  # noqa: BLE001 - the stream breaks in many ways, and each of them is its end
            put(_Broken())

    start_thread(read, name=name)
    try:
        while (item := await arrived.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        close()
