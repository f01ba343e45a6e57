"""The tokens of people: a private file that has only their hashes."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from roost.scheduler.client.state_folder import UnfitFile, state_folder, write_private_json
from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import read_document

NAME_RULE = "up to 64 small letters, digits and . _ @ -, beginning with a letter or digit"
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")
_BYTES = 32
_ID_LENGTH = 10
"""How many characters of its hash name a token."""
_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token of `user`, by the SHA-256 of its text."""

    sha256: str
    user: str
    added_at: float
    expires_at: float

    @property
    def id(self) -> str:
        """The name of the token for people. It opens nothing."""
        return self.sha256[:_ID_LENGTH]


def is_name(name: str) -> bool:
    """True if a person may have this name."""
    return _NAME.fullmatch(name) is not None


def hash_token(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class TokenFile:
    """The tokens of one file, which is read again when it has changed."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or state_folder("gateway") / "tokens.json"
        self._read_at: tuple[int, int, int] | None = None
        self._tokens: Mapping[str, Token] = {}

    def list_all(self) -> Sequence[Token]:
        """Return all tokens, also expired ones. Raises `ConfigError`."""
        return list(self._read().values())

    def find(self, text: str) -> Token | None:
        """Return the token with this text, unless it has expired. Raises `ConfigError`."""
        token = self._read().get(hash_token(text))
        return token if token is not None and token.expires_at > time.time() else None

    def add(self, user: str, days: float) -> tuple[str, Token]:
        """Add a token of `user`, and return its text, which nobody can read again. Expired tokens go from the file."""
        text, now = secrets.token_urlsafe(_BYTES), time.time()
        token = Token(sha256=hash_token(text), user=user, added_at=now, expires_at=now + days * _DAY_S)
        with self._changing():
            self._write([*(each for each in self._read().values() if each.expires_at > now), token])
        return text, token

    def remove(self, name: str) -> Sequence[Token]:
        """Remove the token of this id, or all tokens of this user, and return them."""
        with self._changing():
            tokens = self._read().values()
            removed = [each for each in tokens if name in (each.user, each.id)]
            self._write([each for each in tokens if each not in removed])
        return removed

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep other commands from a change of the file in this block."""
        lock = os.open(
            self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self) -> Mapping[str, Token]:
        try:
            status = self.path.stat()
            state = (status.st_mtime_ns, status.st_size, status.st_ino)
            if state != self._read_at:
                tokens = map(_to_token, read_document(self.path)["tokens"])
                self._tokens, self._read_at = {token.sha256: token for token in tokens}, state
        except FileNotFoundError:
            self._tokens, self._read_at = {}, None
        except (UnfitFile, OSError, LookupError, TypeError, ValueError) as problem:
            raise ConfigError(f"The tokens in {self.path} cannot be read: {problem}") from None
        return self._tokens

    def _write(self, tokens: Sequence[Token]) -> None:
        write_private_json(self.path, {"tokens": [asdict(token) for token in tokens]})


def _to_token(document: Mapping[str, Any]) -> Token:
    added_at, expires_at = float(document["added_at"]), float(document["expires_at"])
    return Token(
        sha256=str(document["sha256"]), user=str(document["user"]), added_at=added_at, expires_at=expires_at
    )
