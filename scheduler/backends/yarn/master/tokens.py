"""Hadoop's credentials files, which have a container's tokens and secrets (`$HADOOP_TOKEN_FILE_LOCATION`).

Hadoop has two formats: its own Writable format (version 0) and protobuf (version 1). NodeManagers of every release
read version 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .schema import CredentialsKV, CredentialsMessage, Token
from .wire import WireFormatError, decode, encode, frame, split

_MAGIC = b"HDTS"
_WRITABLE, _PROTOBUF = 0, 1
_SMALLEST = -112  # WritableUtils.writeVLong: one byte holds -112 to 127

AMRM_KIND = "YARN_AM_RM_TOKEN"
"""The kind of the token with which a master logs in to the ResourceManager."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Tokens and secrets by their names."""

    tokens: Mapping[str, Token] = field(default_factory=dict, repr=False)
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)


def read_credentials(data: bytes) -> Credentials:
    """Return the content of a credentials file of either format. Raises `WireFormatError`."""
    if data[:4] != _MAGIC or len(data) < 6:
        raise WireFormatError("this is no credentials file of Hadoop")
    if data[4] == _PROTOBUF:
        content = decode(CredentialsMessage, split(data, 5)[0])
        return Credentials(
            tokens={entry.alias: entry.token for entry in content.tokens if entry.token is not None},
            secrets={entry.alias: entry.secret for entry in content.secrets},
        )
    if data[4] != _WRITABLE:
        raise WireFormatError(f"credentials of version {data[4]} are not known")
    reader = _Reader(data, 5)
    tokens = {reader.text(): reader.token() for _ in range(reader.number())}
    return Credentials(tokens=tokens, secrets={reader.text(): reader.block() for _ in range(reader.number())})


def write_credentials(credentials: Credentials, *, as_protobuf: bool = False) -> bytes:
    """Return the content of a credentials file."""
    if as_protobuf:
        message = CredentialsMessage(
            tokens=tuple(
                CredentialsKV(alias=name, token=token) for name, token in credentials.tokens.items()
            ),
            secrets=tuple(
                CredentialsKV(alias=name, secret=secret) for name, secret in credentials.secrets.items()
            ),
        )
        return _MAGIC + bytes([_PROTOBUF]) + frame(encode(message))
    content = bytearray(_MAGIC + bytes([_WRITABLE]))
    content += _pack_number(len(credentials.tokens))
    for name, token in credentials.tokens.items():
        for part in (
            name.encode(), token.identifier, token.password, token.kind.encode(), token.service.encode()
        ):  # fmt: skip
            content += _pack_number(len(part)) + part
    content += _pack_number(len(credentials.secrets))
    for name, secret in credentials.secrets.items():
        for part in (name.encode(), secret):
            content += _pack_number(len(part)) + part
    return bytes(content)


def _pack_number(number: int) -> bytes:
    """Return a number that is not negative, as `WritableUtils.writeVInt` writes it."""
    if number <= 127:
        return bytes([number])
    size = (number.bit_length() + 7) // 8
    return bytes([_SMALLEST - size & 0xFF]) + number.to_bytes(size, "big")


class _Reader:
    """Reads Writable values from `data`, one after another."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at

    def number(self) -> int:
        (first,) = self._take(1)
        if first <= 127:
            return first
        size = _SMALLEST - (first - 256)
        if not 1 <= size <= 8:
            raise WireFormatError("a length is negative")
        return int.from_bytes(self._take(size), "big")

    def block(self) -> bytes:
        return self._take(self.number())

    def text(self) -> str:
        return self.block().decode(errors="replace")

    def token(self) -> Token:
        return Token(identifier=self.block(), password=self.block(), kind=self.text(), service=self.text())

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise WireFormatError("the credentials end too early")
        self._at += size
        return self._data[self._at - size : self._at]
