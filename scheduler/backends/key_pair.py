"""The service's key pair for the agents of a cluster, and the keys and ports that are derived from it.

A service that starts again reads the pair from its file, so it can reach the agents of the earlier service.
The cluster never receives the secret key of the pair.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
import zmq.utils.z85

from roost.launchers.daemon.file_input import UnfitFile, read_document
from roost.launchers.daemon.private_files import FolderError, private_folder, state_folder, write_private_json
from roost.launchers.protocol.rpc import ClientKeys, ServerKeys
from roost.scheduler.errors import ConfigError


class _NoKeyPair(Exception):
    """A file has no key pair. The text says why, as a clause."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """The service's CURVE key pair, for encrypted ZeroMQ connections. Both keys are Z85 text."""

    public: str
    secret: str = field(repr=False)

    @property
    def label(self) -> str:
        """A digest of the public key.

        It marks the service's pods or YARN applications, so that the service finds them.
        """
        return hashlib.sha256(self.public.encode()).hexdigest()[:16]

    def sign(self, *texts: str) -> str:
        """Return a signature of these texts that only this service can make."""
        return self._derive(*texts).hex()

    def keys_for(self, agent_public: str) -> ClientKeys:
        """Return the keys of a connection to the agent with this public key."""
        return ClientKeys(server=agent_public, public=self.public, secret=self.secret)

    def derive_server(self, purpose: str) -> ServerKeys:
        """Return the keys of a server that only this service may call. The same purpose gives the same keys."""
        secret = zmq.utils.z85.encode(self._derive("server", purpose))
        return ServerKeys(
            public=zmq.curve_public(secret).decode(), secret=secret.decode(), clients=frozenset([self.public])
        )

    def derive_ports(self, purpose: str, lowest: int, highest: int, count: int) -> tuple[int, ...]:
        """Return `count` different ports in `lowest..highest`. The same purpose gives the same ports."""
        span = highest - lowest + 1
        numbers = (
            int.from_bytes(self._derive("port", purpose, str(attempt)), "big") % span
            for attempt in itertools.count()
        )
        chosen: dict[int, None] = {}
        while len(chosen) < min(count, span):
            chosen[lowest + next(numbers)] = None
        return tuple(chosen)

    def _derive(self, *texts: str) -> bytes:
        return hmac.new(self.secret.encode(), json.dumps(texts).encode(), hashlib.sha256).digest()


def load_key_pair(path: str, *, name: str, section: str) -> KeyPair:
    """Return the key pair in the file `path`; create the file if it is missing. Raises `ConfigError` if that fails.

    An empty path means the default file of the backend `name`. The error names `section`, the backend's section of
    the configuration.
    """
    advice = f"set c.{section}.identity_file to a file in a folder of yours with mode 0700"
    try:
        file = find_key_file(path, name=name)
    except FolderError as problem:
        raise ConfigError(f"no folder for the key pair: {problem}; {advice}.") from None
    return _read(file, advice)


def find_key_file(path: str, *, name: str) -> Path:
    """Return the file of `load_key_pair`, there or not. Raises `FolderError` if there is no folder for it."""
    return Path(path) if path else state_folder() / f"{name}-identity.json"


def load_service_key_pair(folder: Path) -> KeyPair:
    """Return the key pair in this service's folder; create it if it is missing.

    Raises `ConfigError` if that fails.
    """
    return _read(folder / "identity.json", "make room there, and remove that file if it is damaged")


def _read(file: Path, advice: str) -> KeyPair:
    try:
        private_folder(file.parent)
        if not os.path.lexists(file):
            public, secret = (key.decode() for key in zmq.curve_keypair())
            fresh = file.with_name(f".{file.name}.{os.getpid()}")
            write_private_json(fresh, {"public": public, "secret": secret})
            with contextlib.suppress(FileExistsError):  # another service was faster
                os.link(fresh, file)
            fresh.unlink()
        # The operator's file may be a link, for example to a mounted Secret.
        return _build_pair(read_document(file, may_be_link=True))
    except (FolderError, OSError, UnfitFile, _NoKeyPair) as problem:
        raise ConfigError(f"the key pair {file} cannot be read or made ({problem}): {advice}.") from None


def _build_pair(found: Any) -> KeyPair:
    """Return the key pair in a JSON value. Raises `_NoKeyPair`."""
    try:
        public, secret = str(found["public"]), str(found["secret"])
        if zmq.curve_public(secret.encode()) != public.encode():
            raise _NoKeyPair("its public key does not belong to its secret key")
    except (ValueError, TypeError, KeyError, zmq.ZMQError):
        raise _NoKeyPair("it has no CURVE keys") from None
    return KeyPair(public, secret)
