"""A thin client of the Kubernetes API: plain JSON over kept connections, and watches. Calls run in threads.

The package `kubernetes` reads the configuration and renews credentials. Its models are left out: they take five times
as long to read a thousand nodes.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urlencode, urlsplit

import urllib3
import yaml
from kubernetes import client
from kubernetes import config as kubernetes_config
from urllib3.connection import HTTPConnection

from roost.launchers.daemon.file_input import read_text
from roost.launchers.daemon.tasks import in_thread
from roost.scheduler.errors import BackendUnavailable, ConfigError, RoostError
from roost.scheduler.input_files import read_input_yaml

from .kubeconfig import DEFAULT_FILE, NAMESPACE_FILE

JsonObject = dict[str, Any]
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]
"""Socket options with which the end of an idle connection's peer is noticed within 11 s.

They also keep load balancers from dropping an idle connection.
"""
MERGE = "application/merge-patch+json"
_CALL_S = 15.0
_CONNECT_S = 5.0
_ATTEMPTS = 4
"""How often a call is sent if the API server is overloaded."""
_SILENT_S, _SILENT_SHARE = 3.0, 0.2
"""How long the first attempt waits for an answer: at least this time, or this share of the whole time. A connection
that was idle may have fallen silent. The next attempt uses a new one, so all calls must be repeatable.
"""
_PAUSE_S = 2.0
"""The longest pause between two attempts, whatever the server asks for."""
_LONG = 1 << 20
_LONGEST_EVENT = 32 << 20
"""A watch breaks at an event with more bytes. Kubernetes stores objects of at most 1.5 MiB."""
_SSL_NOISE = re.compile(r"\[SSL: \w+\] | \(_ssl\.c:\d+\)")
_READER_ERRORS = (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError, yaml.YAMLError)
"""The errors of the kubernetes package for a configuration of another form."""


class ApiError(Exception):
    """A refusal by the API server. `status` is the HTTP status, `reason` Kubernetes' word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


class Api:
    """A client of one API server, as one user. `file` and `context` are the settings `address` and `context`."""

    def __init__(self, file: str, context: str) -> None:
        self._file, self._context = file, context
        self._lock = threading.Lock()
        self._loaded: tuple[client.Configuration, urllib3.PoolManager] | None = None
        self.namespace = "default"
        """The namespace of the context or pod. Known after the first call."""
        self.server = ""

    async def call(
        self,
        method: str,
        path: str,
        body: JsonObject | None = None,
        *,
        timeout_s: float = _CALL_S,
        **options: Any,
    ) -> JsonObject:
        """Do as `request` does, in a thread. A call that is cancelled may still be carried out."""
        work = partial(self.request, method, path, body, timeout_s=timeout_s, **options)
        deadline_s = timeout_s + _CONNECT_S + _ATTEMPTS * _PAUSE_S
        try:
            return await in_thread(work, deadline_s=deadline_s, name="kubernetes-call")
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Kubernetes does not answer: {method} {path}") from None

    async def demand(
        self, method: str, path: str, body: JsonObject | None = None, **options: Any
    ) -> JsonObject:
        """Do as `call` does, but raise `BackendUnavailable` for a refusal: it means here that roost lacks a right."""
        try:
            return await self.call(method, path, body, **options)
        except ApiError as problem:
            raise BackendUnavailable(f"Kubernetes refuses roost: {problem.message}") from None

    def request(
        self,
        method: str,
        path: str,
        body: JsonObject | None = None,
        *,
        content_type: str = "application/json",
        timeout_s: float = _CALL_S,
        **query: Any,
    ) -> JsonObject:
        """Send a request and return the answer. Blocks; raises `ApiError` for a refusal, and `BackendUnavailable`."""
        response = self._send(
            method,
            path,
            query,
            body=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type},
            read_s=timeout_s,
        )
        try:
            answer = _parse(response.data)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise BackendUnavailable(f"{self.server} does not answer as Kubernetes does: {method} {path}")
        return answer

    def watch(self, path: str, query: Mapping[str, Any], read_s: float) -> WatchStream:
        """Open a watch. It fails if nothing arrives for `read_s`. Blocks; raises as `request` does."""
        return WatchStream(
            self._send("GET", path, {"watch": "1", **query}, read_s=read_s, preload_content=False)
        )

    def _send(
        self, method: str, path: str, query: Mapping[str, Any], *, read_s: float, **options: Any
    ) -> Any:
        may_be_silent = "preload_content" not in options  # a watch is silent for long
        for attempt in range(1, _ATTEMPTS + 1):
            configuration, pool = self._load()
            headers = {"Accept": "application/json", **options.get("headers", {})}
            if token := configuration.get_api_key_with_prefix("BearerToken", alias="authorization"):
                headers["Authorization"] = token
            url = configuration.host + path
            if query:
                url += "?" + urlencode(query)
            wait_s = min(read_s, max(_SILENT_S, _SILENT_SHARE * read_s)) if may_be_silent else read_s
            timeout = urllib3.Timeout(connect=_CONNECT_S, read=wait_s)
            try:
                response = pool.request(method, url, **{**options, "headers": headers, "timeout": timeout})
            except urllib3.exceptions.HTTPError as problem:
                self.forget_connections()
                cause = getattr(problem, "reason", problem)
                if may_be_silent and isinstance(cause, urllib3.exceptions.ReadTimeoutError):
                    may_be_silent = False
                    continue
                raise BackendUnavailable(
                    f"Kubernetes at {configuration.host} does not answer ({_short(problem)})"
                ) from None
            may_be_silent = False
            if response.status == 401 and attempt == 1:
                self.close()  # the credentials have expired: read them again
                continue
            if response.status == 429 and attempt < _ATTEMPTS:
                time.sleep(_read_pause_s(response))
                continue
            if response.status >= 400:
                raise _build_error(response, configuration.host)
            return response
        raise AssertionError("unreachable")

    def _load(self) -> tuple[client.Configuration, urllib3.PoolManager]:
        with self._lock:
            if self._loaded is None:
                configuration = client.Configuration()
                self.namespace = _read_configuration(configuration, self._file, self._context)
                self.server = configuration.host
                self._loaded = configuration, _build_pool(configuration)
            return self._loaded

    def forget_connections(self) -> None:
        """Use new connections from now on: if one has fallen silent, the idle ones probably have too."""
        with self._lock:
            if self._loaded is not None:
                configuration, pool = self._loaded
                pool.clear()
                self._loaded = configuration, _build_pool(configuration)

    def find_own_address(self) -> str:
        """Return the IPv4 address from which this machine or pod reaches the API server. Blocks; raises `OSError`."""
        server = urlsplit(self.server)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # sends nothing
            probe.connect((server.hostname or "", server.port or 443))
            return str(probe.getsockname()[0])

    def close(self) -> None:
        """Close the idle connections. A later call reads the configuration and connects again."""
        with self._lock:
            if self._loaded is not None:
                self._loaded[1].clear()
            self._loaded = None


class WatchStream:
    """A stream of events of the API server: `{"type": ..., "object": ...}`. Iterate it in a thread."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def __iter__(self) -> Iterator[JsonObject]:
        """Yield events until the server ends the watch. Raises `BackendUnavailable` if the stream breaks."""
        rest = b""
        try:
            for chunk in self._response.stream(1 << 16, decode_content=True):
                *lines, rest = (rest + chunk).split(b"\n")
                if len(rest) > _LONGEST_EVENT:
                    raise ValueError(f"an event has more than {_LONGEST_EVENT >> 20} MiB")
                yield from map(json.loads, lines)
        except (
            urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError, RecursionError
        ) as problem:  # fmt: skip
            raise BackendUnavailable(f"a watch of Kubernetes broke ({_short(problem)})") from None
        finally:
            self._response.close()

    def close(self) -> None:
        """End the stream, from another thread. May be repeated."""
        with suppress(OSError, AttributeError):  # it may be closed already
            self._response.connection.sock.shutdown(socket.SHUT_RDWR)


def _parse(text: bytes) -> object:
    """Return the parsed JSON. Raises `ValueError` or `RecursionError`.

    For a long text the garbage collector is off meanwhile, because it doubles the time.
    """
    is_resting = len(text) > _LONG and gc.isenabled()
    if is_resting:
        gc.disable()
    try:
        answer: object = json.loads(text)
        return answer
    finally:
        if is_resting:
            gc.enable()


def _read_configuration(configuration: client.Configuration, file: str, context: str) -> str:
    """Fill the configuration and return the namespace. Raises `ConfigError`."""
    named = file or os.environ.get("KUBECONFIG", "")
    default = os.path.expanduser(DEFAULT_FILE)
    reader: Any = kubernetes_config  # without types
    if named and os.pathsep not in named and not os.path.exists(named):
        raise ConfigError(
            f"there is no kubeconfig file {named}: correct "
            f"{'the address of the backend' if file else 'KUBECONFIG'}."
        )
    try:
        if not named and not os.path.exists(default) and NAMESPACE_FILE.exists():
            reader.load_incluster_config(client_configuration=configuration)
            return read_text(NAMESPACE_FILE, may_be_link=True).strip()
        for each in (named or default).split(os.pathsep):
            if os.path.exists(each):
                read_input_yaml(each, is_json=False)  # a token may have a date
        reader.load_kube_config(
            config_file=named or default, context=context or None, client_configuration=configuration
        )
        contexts, active = reader.list_kube_config_contexts(config_file=named or default)
        chosen = next((one for one in contexts if one["name"] == context), active)
        return str(chosen["context"].get("namespace") or "default")
    except (RoostError, reader.ConfigException, OSError, *_READER_ERRORS) as problem:
        raise ConfigError(
            f"the Kubernetes configuration {named or default} cannot be read ({_short(problem)}): set KUBECONFIG "
            "or c.RoostKubernetesBackend.address to a kubeconfig file."
        ) from None


def _build_pool(configuration: client.Configuration) -> urllib3.PoolManager:
    options: dict[str, Any] = {
        "maxsize": 16,
        "retries": urllib3.Retry(0, redirect=0),
        "ca_certs": configuration.ssl_ca_cert,
        "cert_file": configuration.cert_file,
        "key_file": configuration.key_file,
        "cert_reqs": "CERT_REQUIRED" if configuration.verify_ssl else "CERT_NONE",
        "socket_options": [*HTTPConnection.default_socket_options, *_KEEPALIVE],
    }
    if name := getattr(configuration, "tls_server_name", None):
        options["server_hostname"] = name
    if configuration.proxy:
        return urllib3.ProxyManager(configuration.proxy, **options)
    return urllib3.PoolManager(**options)


def _build_error(response: Any, host: str) -> Exception:
    try:
        body = json.loads(response.data)
    except (ValueError, RecursionError):
        body = {}
    body = body if isinstance(body, dict) else {}
    message = str(body.get("message") or response.reason or "no reason given")
    if response.status == 401:
        return BackendUnavailable(f"Kubernetes at {host} does not accept roost's credentials: {message}")
    if response.status == 429 or response.status >= 500:
        return BackendUnavailable(f"Kubernetes at {host} is overloaded or failing: {message}")
    return ApiError(response.status, str(body.get("reason", "")), message)


def _read_pause_s(response: urllib3.BaseHTTPResponse) -> float:
    """Return how long the server asks the client to wait, at most `_PAUSE_S`. Retry-After has seconds or a date."""
    pause_s: float | None = None
    with suppress(urllib3.exceptions.InvalidHeader):
        pause_s = urllib3.Retry().get_retry_after(response)
    return _PAUSE_S / 2 if pause_s is None else min(pause_s, _PAUSE_S)


def _short(problem: BaseException) -> str:
    """Return the cause of a failed call in a few words."""
    cause = getattr(problem, "reason", None)
    text = str(cause if isinstance(cause, BaseException) else problem) or type(problem).__name__
    return _SSL_NOISE.sub("", text).rpartition(": ")[2][:200]
