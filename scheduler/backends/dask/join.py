"""Joins a Dask cluster as a client, or reports within seconds, in one sentence, why that is not possible.

A Dask client retries for half a minute, and reports little. So one question is asked first, and its error is examined.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
import sys
from pathlib import Path
from typing import Any

from roost.launchers.daemon.file_input import UnfitFile, read_document
from roost.placement.model import Request
from roost.scheduler.errors import BackendUnavailable, ConfigError

from .settings import RoostDaskBackend

_CONNECT_S = 3.0
_PROBE_S = 1.0
_ANSWER_S = 5.0
_JOIN_S = 10.0
_WHERE = "c.RoostDaskBackend.address or DASK_SCHEDULER_ADDRESS"
_TLS = (
    "tls_ca_file, tls_cert and tls_key of c.RoostDaskBackend, or distributed.comm.tls in Dask's configuration"
)


async def join(settings: RoostDaskBackend, fallback: str) -> tuple[Any, str]:
    """Join a Dask cluster; return its client and its address.

    The settings name the cluster, else Dask's configuration, else `fallback`.

    Raises `ConfigError` if somebody must change something, and `BackendUnavailable` if the problem may pass.
    """
    try:
        await asyncio.to_thread(importlib.import_module, "distributed")  # 0.8 s
    except ImportError as problem:
        raise ConfigError(f"distributed is installed here and cannot be imported: {problem}") from problem
    from distributed import Client

    address = resolve(settings, fallback)
    security = _build_security(settings, address)
    _check_python(address, await _greet(address, security))
    client = Client(address, asynchronous=True, security=security, timeout=_JOIN_S, set_as_default=False)
    try:
        await asyncio.wait_for(client, _JOIN_S + 1)
    except (OSError, asyncio.TimeoutError) as problem:
        await leave(client)
        raise BackendUnavailable(f"the Dask cluster at {address} does not take roost in: {problem}") from None
    return client, address


async def leave(client: Any) -> None:
    """Stop being a client. Leases stay."""
    with contextlib.suppress(OSError, asyncio.TimeoutError):  # its scheduler is gone
        await asyncio.wait_for(client.close(), _ANSWER_S)


def resolve(settings: RoostDaskBackend, fallback: str = "") -> str:
    """Return the address of Dask's scheduler, tcp://host:port or tls://host:port.

    Raises `ConfigError` if there is no valid address, and `BackendUnavailable` if the scheduler file cannot
    be read.
    """
    address = settings.address or _read_configuration("scheduler-address") or fallback
    if not address:
        raise ConfigError(
            f"there is no Dask cluster to join: give its scheduler's address, or its scheduler file, by {_WHERE}"
        )
    if "://" not in address and (address.endswith(".json") or Path(address).exists()):
        address = _read_scheduler_file(address)
    scheme, separator, where = address.rpartition("://")
    if not separator:
        is_encrypted = settings.tls_ca_file or _read_configuration("distributed.comm.require-encryption")
        scheme = "tls" if is_encrypted else "tcp"
    scheme = scheme.lower()
    host, _, port = where.rpartition(":")
    is_port = port.isdecimal() and 0 < int(port) < 65536
    if scheme not in ("tcp", "tls") or not host or not is_port:
        raise ConfigError(
            f"{address!r} is no address of a Dask scheduler: give tcp://host:port, tls://host:port, or the path of a "
            "scheduler file"
        )
    return f"{scheme}://{where}"


def name_cluster(settings: RoostDaskBackend) -> str:
    """Return the address of the cluster that the settings name, as `BackendSpec.cluster` wants it."""
    return resolve(settings)


def check(settings: RoostDaskBackend, request: Request) -> None:
    """Look whether a Dask scheduler's port is open, for a new kernelspec. See `BackendSpec.check`."""
    try:
        address = resolve(settings)
    except ConfigError as problem:
        if settings.address:
            raise
        raise BackendUnavailable(str(problem)) from None  # a server's environment may name it
    if why := asyncio.run(_probe(address)):
        raise _nobody_at(address, why)


def _read_configuration(name: str) -> Any:
    """Return a value of Dask's own configuration; an empty text if it has none, or if Dask is not installed here."""
    try:
        import dask
    except ImportError:
        return ""
    return dask.config.get(name, "")


def _read_scheduler_file(path: str) -> str:
    try:
        found = read_document(Path(path).expanduser(), may_be_link=True)["address"]
    except OSError as problem:
        hint = "is the cluster running?" if Path(path).is_absolute() else "give its whole path"
        raise BackendUnavailable(
            f"the Dask scheduler file {path} cannot be read: {problem.strerror}; {hint}"
        ) from None
    except UnfitFile as problem:
        raise ConfigError(f"{problem}: it is no Dask scheduler file") from None
    except (KeyError, TypeError):
        found = None
    if not isinstance(found, str):
        raise ConfigError(f"{path} is no Dask scheduler file: it has no address")
    return found


def _build_security(settings: RoostDaskBackend, address: str) -> Any:
    from distributed.security import Security

    given = {
        "tls_ca_file": settings.tls_ca_file,
        "tls_client_cert": settings.tls_cert,
        "tls_client_key": settings.tls_key,
    }
    security = Security(**{name: value for name, value in given.items() if value})
    if not address.startswith("tls://"):
        if security.require_encryption:
            raise ConfigError(f"encryption is required, and {address} has none: give its tls:// address")
        return security
    for name in given:
        value = getattr(security, name)
        if not value:
            raise ConfigError(f"{address} wants TLS, and {name} is not known: set {_TLS}")
        if "\n" not in value and not Path(value).is_file():
            raise ConfigError(f"{name} of the Dask cluster, {value}, is no file here: set {_TLS}")
    try:
        security.get_connection_args("client")
    except (OSError, ValueError) as problem:  # ssl.SSLError is an OSError
        raise ConfigError(f"the TLS files for {address} cannot be used ({problem}): set {_TLS}") from None
    return security


async def _greet(address: str, security: Any) -> dict[str, Any]:
    """Return the package versions of the scheduler at this address."""
    from distributed.comm import connect
    from distributed.core import send_recv

    async def ask() -> Any:
        comm = await connect(address, timeout=_CONNECT_S, **security.get_connection_args("client"))
        try:
            return await send_recv(comm, op="versions")
        finally:
            comm.abort()

    try:
        return dict((await asyncio.wait_for(ask(), _ANSWER_S))["packages"])
    except asyncio.TimeoutError as problem:
        raise _explain(address, problem) from None
    except Exception as problem:
        if why := await _probe(address):
            raise _nobody_at(address, why) from problem
        raise _explain(address, problem) from problem


async def _probe(address: str) -> str:
    """Return why no connection is possible, or "" if one is. After a timeout, Dask itself gives no reason."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), _PROBE_S)
    except ConnectionRefusedError:
        return "nobody listens there"
    except (socket.gaierror, UnicodeError):  # no label of a host is empty, or longer than 63 characters
        return "there is no such host"
    except asyncio.TimeoutError:
        return "that host does not answer"
    except OSError as problem:
        return problem.strerror or str(problem)
    writer.close()
    return ""


def _nobody_at(address: str, why: str) -> BackendUnavailable:
    return BackendUnavailable(
        f"there is no Dask scheduler at {address}: {why}; is it up, and {_WHERE} right?"
    )


def _explain(address: str, problem: Exception) -> BackendUnavailable | ConfigError:
    """Return the error for a scheduler that accepts a connection and does not answer."""
    chain: list[BaseException] = [problem]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 10:
        chain.append(cause)
    text = " ".join(f"{type(each).__name__} {each}" for each in chain)
    if "certificate" in text or "UNKNOWN_CA" in text or "alert" in text:
        return ConfigError(
            f"the Dask cluster at {address} and roost do not accept each other's certificates: set {_TLS}"
        )
    if address.startswith("tls://") and "FatalCommClosedError" in text:
        return ConfigError(f"what listens at {address} does not speak TLS: is its address a tcp:// one?")
    hint = "is its address a tls:// one?"
    if address.startswith("tls://"):  # if it refuses a certificate, it closes the connection without a word
        hint = f"is its address a tcp:// one, or does it refuse roost's certificate? Set {_TLS}"
    return BackendUnavailable(f"what listens at {address} does not answer as a Dask scheduler: {hint}")


def _check_python(address: str, packages: dict[str, Any]) -> None:
    """Raise `ConfigError` unless the cluster has this minor version of Python: roost sends it pickled code."""
    theirs = ".".join(str(packages.get("python", "")).split(".")[:2])
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    if theirs != ours:
        raise ConfigError(
            f"the Dask cluster at {address} runs on Python {theirs}, roost's service on {ours}, and they must be the "
            "same: set ROOST_SERVICE_PYTHON to an interpreter of the cluster's version with roost and distributed"
        )
