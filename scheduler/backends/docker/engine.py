"""A client of one Docker engine by its Unix socket. Calls run in threads, each with a deadline."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException

from roost.launchers.daemon.tasks import in_thread, start_thread
from roost.scheduler.errors import BackendUnavailable, ConfigError

from .names import LEASE_LABEL

T = TypeVar("T")
JsonObject = dict[str, Any]

_CALL_S = 20.0
_LATE_S = 5.0
"""How much later than its timeout a call may end, because it has several steps."""
_SOCKET = "unix:///var/run/docker.sock"
_SCHEME = "unix://"


class EngineError(Exception):
    """A refusal by the engine. `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


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

    async def follow(self) -> AsyncGenerator[JsonObject, None]:
        """Yield the events of roost's containers, after an empty one once no later event can be missed.

        Raises `BackendUnavailable` when the engine ends the stream.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[JsonObject | None] = asyncio.Queue()
        filters = {"type": "container", "label": LEASE_LABEL}
        try:
            stream = await self.call(lambda client: client.events(decode=True, filters=filters))
        except EngineError as problem:
            raise BackendUnavailable(f"the Docker engine refuses its events: {problem.message}") from None

        def put(event: JsonObject | None) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(arrived.put_nowait, event)

        def read() -> None:
            try:
                for event in stream:
                    put(event)
            except Exception:  # noqa: BLE001 - the stream breaks in many ways, and each of them is its end
                pass
            finally:
                put(None)

        start_thread(read, name="docker-events")
        try:
            yield {}
            while (event := await arrived.get()) is not None:
                yield event
            raise BackendUnavailable(f"the Docker engine at {self.address} has ended its stream of events")
        finally:
            with suppress(Exception):  # it has ended
                stream.close()

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
                    probe.connect(self.address.removeprefix(_SCHEME))
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


def find_address(address: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the engine's address by the setting and by DOCKER_HOST. Raises `ConfigError` if it is no Unix socket.

    >>> find_address("", {})
    'unix:///var/run/docker.sock'
    """
    chosen = address or environment.get("DOCKER_HOST", "") or _SOCKET
    if not chosen.startswith(f"{_SCHEME}/"):
        raise ConfigError(
            f"the Docker engine {chosen:.80} is not on this machine: roost reaches engines by their Unix socket only, "
            "so set c.RoostDockerBackend.address or DOCKER_HOST to unix:///PATH."
        )
    return chosen


def _shorten(problem: Exception) -> str:
    text = str(getattr(problem, "explanation", "") or problem)
    return " ".join(text.split()).rstrip(".")[:500]
