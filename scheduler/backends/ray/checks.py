"""Checks of a Ray cluster before roost joins it. Each takes seconds at most.

The calls outside Ray's public interface are the same in Ray 2.40 and 2.60. A Ray without them is joined unchecked.
"""

from __future__ import annotations

import concurrent.futures
import errno
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from roost.launchers.daemon.file_input import UnfitFile, read_text
from roost.launchers.daemon.tasks import start_thread
from roost.placement.model import Request
from roost.scheduler.errors import BackendUnavailable, ConfigError

from .settings import RoostRayBackend

log = logging.getLogger(__name__)

T = TypeVar("T")

_CONNECT_S = 3.0
_ASK_S = 5.0
_SETTINGS = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS
"""The start of every HTTP/2 connection, and so of gRPC, with empty settings (RFC 9113, 3.4)."""
_GCS_PORT = "the port that `ray start --head` printed, 6379 by default"
_FROM_OUTSIDE = (
    "From outside the cluster's network, run Jupyter with roost on the head, and reach it by "
    "`ssh -L 8888:localhost:8888 HEAD` or `kubectl port-forward HEAD-POD 8888`"
)
_NAMED_BY = "`--backend-option address=HOST:PORT`, c.RoostRayBackend.address or RAY_ADDRESS"
_PYTHON = ".".join(map(str, sys.version_info[:3]))


@dataclass(frozen=True, slots=True, kw_only=True)
class RayletAddress:
    id: str
    host: str
    port: int
    is_head: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFacts:
    """A cluster's description of itself. A cluster that is started again at the same address has a new id."""

    cluster_id: str
    ray_version: str
    python_version: str
    nodes: tuple[RayletAddress, ...]


def resolve(address: str) -> str:
    """Return the `host:port` for `address`. If it is empty or "auto", find the cluster as `ray.init` does."""
    if not is_found_here(address):
        named = address if address not in ("", "auto") else os.environ["RAY_ADDRESS"]
        _split(named)
        return named
    running = sorted({gcs for gcs, _ in _raylets()})
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    with suppress(OSError, UnfitFile):
        # Another user may have written this file in /tmp. Only an address that runs here counts.
        latest = read_text(Path(folder, "ray/ray_current_cluster"), may_be_link=True).strip()
        if latest in running:
            return latest
    if not running:
        raise BackendUnavailable(
            f"no Ray cluster runs on this machine: name one by {_NAMED_BY} (host:port, "
            f"{_GCS_PORT}), and let this machine be one of its nodes"
        )
    if len(running) > 1:
        raise ConfigError(
            f"several Ray clusters run on this machine, {', '.join(running)}: name one by {_NAMED_BY}"
        )
    return running[0]


def name_cluster(settings: RoostRayBackend) -> str:
    """Return the address of the cluster that the settings name, as `BackendSpec.cluster` wants it.

    A loopback address is that of the head on this machine, if the head's port is the same.
    """
    address = resolve(settings.address)
    host, port = _split(address)
    running = [gcs for gcs, _ in _raylets()] if host == "localhost" or host.startswith("127.") else []
    if address in running:
        return address
    here = (gcs for gcs in running if _split(gcs)[1] == port and _is_own_address(_split(gcs)[0]))
    return next(here, address)


def check(settings: RoostRayBackend, request: Request) -> None:
    """Look whether a Ray cluster answers, for a new kernelspec. See `BackendSpec.check`."""
    try:
        address = name_cluster(settings)
    except ConfigError as problem:
        if settings.address:
            raise
        raise BackendUnavailable(str(problem)) from None  # a server's environment may name it
    greet(address)


def greet(gcs: str) -> None:
    """Raise `BackendUnavailable` unless something at that address speaks gRPC."""
    problem = _probe_grpc(*_split(gcs))
    if problem:
        raise BackendUnavailable(
            f"there is no Ray cluster at {gcs}: {problem}; is its head up, and is this {_GCS_PORT}?"
        )


def check_token(gcs: str, address: str) -> None:
    """Raise `ConfigError` if a token must be sent and there is none. Ray itself would abort the process."""
    try:
        from ray._private.authentication import authentication_token_setup as setup

        check = setup.ensure_token_if_auth_enabled
    except (ImportError, AttributeError):  # Ray before 2.52
        return
    enable = getattr(setup, "maybe_enable_token_auth_if_token_available", None)  # not in Ray 2.52
    try:
        if enable is not None and is_found_here(address):
            # Like `ray.init`. For other clusters, a token is sent only if the environment says so.
            enable(warn_if_disabled=False)
        check(create_token_if_missing=False)
    except Exception as problem:
        file = os.environ.get("RAY_AUTH_TOKEN_PATH")
        if file and not os.environ.get("RAY_AUTH_TOKEN"):
            raise ConfigError(
                f"there is no token for the Ray cluster at {gcs} in {file!r}, which RAY_AUTH_TOKEN_PATH names: "
                "correct it where roost's service starts, or set RAY_AUTH_TOKEN"
            ) from problem
        raise ConfigError(
            f"RAY_AUTH_MODE=token, and there is no token for the Ray cluster at {gcs}: set RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH where roost's service starts, or write ~/.ray/auth_token"
        ) from problem


def ask(gcs: str) -> ClusterFacts | None:
    """Return the cluster's description of itself (7 ms); None if this Ray has no such call."""
    try:
        return run_in_time(lambda: _read_facts(gcs), _ASK_S, f"asking the Ray cluster at {gcs}")
    except (ImportError, AttributeError, TypeError, KeyError, ValueError) as problem:
        log.warning("ray=%s is joined without a check: %r", gcs, problem)
        return None
    except BackendUnavailable:
        raise
    except Exception as problem:
        if "InvalidAuthToken" not in str(problem) and type(problem).__name__ != "AuthenticationError":
            raise BackendUnavailable(
                f"what listens at {gcs} does not answer as a Ray cluster "
                f"({format_first_line(problem)}): is it {_GCS_PORT}?"
            ) from problem
        if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
            raise ConfigError(
                f"the Ray cluster at {gcs} refuses the token: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
                "~/.ray/auth_token must be the cluster's where roost's service starts"
            ) from problem
        raise ConfigError(
            f"the Ray cluster at {gcs} asks for a token: set RAY_AUTH_MODE=token where roost's service starts (with "
            "Ray 2.52 or later), and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, unless ~/.ray/auth_token has the token"
        ) from problem


def check_versions(gcs: str, facts: ClusterFacts, ray_version: str) -> None:
    """Raise `ConfigError` if this service's Ray or Python has another version than the cluster's.

    As for Ray itself, RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL=minor leaves Python's last number out.
    """
    cluster, ours = facts.python_version, _PYTHON
    if os.environ.get("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "patch") == "minor":
        cluster, ours = (version.rpartition(".")[0] for version in (cluster, ours))
    if (facts.ray_version, cluster) != (ray_version, ours):
        install = (
            f"install the cluster's Ray (`pip install '.[ray]' ray=={facts.ray_version}` in a checkout), or "
        )
        raise ConfigError(
            f"the Ray cluster at {gcs} has Ray {facts.ray_version} on Python {facts.python_version}, roost's service "
            f"Ray {ray_version} on Python {_PYTHON}, and Ray wants them equal: "
            f"{install if cluster == ours else ''}set ROOST_SERVICE_PYTHON to an interpreter with roost and the "
            "cluster's versions"
        )


def check_machine(gcs: str, facts: ClusterFacts) -> None:
    """Raise `BackendUnavailable` unless a healthy node of that cluster runs on this machine, as a driver needs.

    If the node does not answer, `ray.init` blocks all threads, and ends the process after 40 s.
    """
    if not facts.nodes:
        raise BackendUnavailable(f"the Ray cluster at {gcs} has no live node: is it just starting?")
    running = {node_id for _, node_id in _raylets()}
    here = [node for node in facts.nodes if node.id in running]
    here = here or [node for node in facts.nodes if _is_own_address(node.host)]
    if not here:
        raise BackendUnavailable(
            f"this machine is no node of the Ray cluster at {gcs}, and a driver must be on one: "
            f"`ray start --address={gcs} --num-cpus=0 --num-gpus=0 --memory=0` joins it "
            f"without giving anything away. {_FROM_OUTSIDE}"
        )
    for node in [node for node in here if node.is_head] or here:  # of several, Ray takes the head
        problem = _probe_grpc(node.host, node.port)
        if problem:
            raise BackendUnavailable(
                f"the node of the Ray cluster at {gcs} on this machine is not well, "
                f"its raylet at {node.host}:{node.port}: {problem}"
            )


def run_in_time(work: Callable[[], T], deadline_s: float, what: str) -> T:
    """Run `work` in a daemon thread. Return its result or raise its error.

    Raises `BackendUnavailable` about `what` after the deadline; the thread is not stopped.
    """
    outcome = start_thread(work, name="roost-ray")
    if not concurrent.futures.wait([outcome], deadline_s).done:
        raise BackendUnavailable(f"{what} takes longer than {deadline_s:.0f} s")
    return outcome.result()


def format_first_line(problem: BaseException) -> str:
    """Return the first line of an error, or of its cause, which is more specific."""
    text = str(problem.__cause__ or problem).strip() or type(problem).__name__
    return text.splitlines()[0].rstrip(".")


def _read_facts(gcs: str) -> ClusterFacts:
    from ray._raylet import GcsClient  # type: ignore[attr-defined,unused-ignore]

    client = GcsClient(address=gcs)
    metadata = client.internal_kv_get(b"CLUSTER_METADATA", b"cluster", timeout=_ASK_S)
    if metadata is None:
        raise BackendUnavailable(f"the Ray cluster at {gcs} does not know its versions: is it just starting?")
    versions = json.loads(metadata)
    alive = [node for node in client.get_all_node_info(timeout=_ASK_S).values() if node.state == 0]
    return ClusterFacts(
        cluster_id=client.cluster_id.hex(),
        ray_version=versions["ray_version"],
        python_version=versions["python_version"],
        nodes=tuple(
            RayletAddress(
                id=node.node_id.hex(),
                host=node.node_manager_address,
                port=node.node_manager_port,
                is_head=node.is_head_node,
            )
            for node in alive
        ),
    )


def is_found_here(address: str) -> bool:
    """True if neither `address` nor RAY_ADDRESS names a cluster, so that the one on this machine is meant."""
    return address in ("", "auto") and os.environ.get("RAY_ADDRESS", "") in ("", "auto")


def _split(address: str) -> tuple[str, int]:
    """Return the host and the port of `host:port`; raise `ConfigError` for every other form of address."""
    scheme, is_url, _ = address.partition("://")
    if is_url:
        owners = {"ray": "Ray Client's", "http": "the dashboard's", "https": "the dashboard's"}
        raise ConfigError(
            f"{address!r} is {owners.get(scheme, 'no')} address, and roost becomes a driver: "
            f"give that of Ray's GCS, host:port ({_GCS_PORT}). {_FROM_OUTSIDE}"
        )
    host, _, port = address.rpartition(":")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if not host or (":" in host and not is_bracketed) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is no address of a Ray cluster: give host:port ({_GCS_PORT})")
    return host.strip("[]"), int(port)


def _probe_grpc(host: str, port: int) -> str:
    """Return why nothing at this address speaks gRPC; empty if something does."""
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return ""
            connection.settimeout(_CONNECT_S)
            connection.sendall(_GREETING)
            answer = connection.recv(len(_SETTINGS))
    except (socket.gaierror, UnicodeError):  # no label of a host is empty, or longer than 63 characters
        return f"no host {host} is known here"
    except TimeoutError:
        return f"no answer within {_CONNECT_S:.0f} s"
    except OSError as problem:
        return os.strerror(problem.errno or errno.EIO).lower()
    if answer[3:4] != _SETTINGS[3:4]:
        return "something else listens there, or Ray with RAY_USE_TLS, which is not set here"
    return ""


def _raylets() -> list[tuple[str, str]]:
    """Return the GCS address and node id of each raylet on this machine, from its command line, as Ray itself does."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"]
        if command and Path(command[0]).name == "raylet":
            options = dict(part.split("=", 1) for part in command[1:] if "=" in part)
            found.append((options.get("--gcs-address", ""), options.get("--node_id", "")))
    return [(gcs, node_id) for gcs, node_id in found if gcs]


def _is_own_address(address: str) -> bool:
    """True if the address belongs to this machine: only then can a socket be bound to it."""
    kind = socket.AF_INET6 if ":" in address else socket.AF_INET
    with suppress(OSError), socket.socket(kind, socket.SOCK_DGRAM) as probe:
        probe.bind((address, 0))
        return True
    return False
