"""SASL DIGEST-MD5 (RFC 2831), the client's side, as Hadoop uses it with tokens.

The server's `hadoop.rpc.protection` chooses what happens to the messages after the login: nothing (`auth`), a
signature (`auth-int`), or a signature and RC4 (`auth-conf`). Hadoop's servers always offer RC4.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

_PAIR = re.compile(r'([a-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^,]*))')
_QUALITIES = ("auth", "auth-int", "auth-conf")
_COUNT = "00000001"
_MAC_SIZE = 10
_TRAILER_SIZE = 6
_TYPE = b"\0\1"
_MOST_CHALLENGE = 2_048
"""A challenge has fewer bytes (RFC 2831, 2.1.1)."""
_BUFFER = 65_536

MAX_CLEAR = 60_000
"""How many bytes to seal at once, so that the result fits the buffers of both sides."""


class SaslError(Exception):
    """The login is not possible, or a message is forged."""


@dataclass(frozen=True, slots=True)
class DigestAnswer:
    """The answer to a server's challenge. `expected` is the server's proof. `seal` is None if messages stay as is."""

    reply: bytes = field(repr=False)
    expected: bytes = field(repr=False)
    seal: Seal | None


def answer_challenge(
    challenge: bytes, *, user: str, password: str, uri: str, client_nonce: str | None = None
) -> DigestAnswer:
    """Return the answer to a challenge. `uri` is `protocol/server`. Raises `SaslError`.

    `client_nonce` is fixed by tests only.
    """
    if len(challenge) >= _MOST_CHALLENGE:
        raise SaslError(f"the server's challenge has {len(challenge)} bytes")
    try:
        text = challenge.decode()
    except UnicodeDecodeError:
        raise SaslError("the server's challenge is no UTF-8") from None
    pairs = {name: quoted or plain for name, quoted, plain in _PAIR.findall(text)}
    if "nonce" not in pairs:
        raise SaslError("the server's challenge has no nonce")
    offered = pairs.get("qop", "auth").split(",")
    quality = next((known for known in _QUALITIES if known in offered), None)
    if quality is None:
        raise SaslError(f"the server offers the protections {', '.join(offered)}, none of which is known")
    if quality == "auth-conf" and "rc4" not in pairs.get("cipher", "").split(","):
        raise SaslError(f"the server offers the ciphers {pairs.get('cipher')}, without rc4")
    realm, nonce = pairs.get("realm", ""), pairs["nonce"]
    client_nonce = client_nonce or base64.b64encode(secrets.token_bytes(24)).decode()
    session = _md5(_md5(f"{user}:{realm}:{password}".encode()) + f":{nonce}:{client_nonce}".encode())

    def sign(text: str) -> str:
        if quality != "auth":
            text += ":" + "0" * 32
        proof = f"{session.hex()}:{nonce}:{_COUNT}:{client_nonce}:{quality}:{_md5(text.encode()).hex()}"
        return _md5(proof.encode()).hex()

    reply = (
        f'charset=utf-8,username="{user}",realm="{realm}",nonce="{nonce}",nc={_COUNT},cnonce="{client_nonce}",'
        f'digest-uri="{uri}",maxbuf={_BUFFER},response={sign(f"AUTHENTICATE:{uri}")},qop={quality}'
    )
    if quality == "auth-conf":
        reply += ',cipher="rc4"'
    seal = None if quality == "auth" else Seal(session, is_private=quality == "auth-conf")
    return DigestAnswer(reply.encode(), f"rspauth={sign(f':{uri}')}".encode(), seal)


class Seal:
    """Signs, and perhaps encrypts, each message of a connection, in the order of the messages (RFC 2831, 2.3, 2.4).

    `is_server` takes the other side's keys; the tests use it.
    """

    def __init__(self, session: bytes, *, is_private: bool, is_server: bool = False) -> None:
        ways = ("client-to-server", "server-to-client")
        mine, theirs = reversed(ways) if is_server else ways
        self._sign, self._check = _Signer(session, mine), _Signer(session, theirs)
        self._close = _cipher(session, mine) if is_private else bytes
        self._open = _cipher(session, theirs) if is_private else bytes

    def wrap(self, clear: bytes) -> bytes:
        signature, trailer = self._sign(clear)
        return self._close(clear + signature) + trailer

    def unwrap(self, sealed: bytes) -> bytes:
        """Return the message.

        Raises `SaslError` if it is forged or repeated, or if an earlier message is missing.
        """
        if len(sealed) < _MAC_SIZE + _TRAILER_SIZE:
            raise SaslError("a message is shorter than its signature")
        opened = self._open(sealed[:-_TRAILER_SIZE])
        clear = opened[:-_MAC_SIZE]
        signature, trailer = self._check(clear)
        if not hmac.compare_digest(opened[-_MAC_SIZE:] + sealed[-_TRAILER_SIZE:], signature + trailer):
            raise SaslError("a message has a wrong signature")
        return clear


class _Signer:
    """Returns the signature and the trailer of the next message of one direction."""

    def __init__(self, session: bytes, way: str) -> None:
        self._key = _md5(session + f"Digest session key to {way} signing key magic constant".encode())
        self._number = 0

    def __call__(self, clear: bytes) -> tuple[bytes, bytes]:
        number = self._number.to_bytes(4, "big")
        self._number += 1
        return hmac.new(self._key, number + clear, _new_md5).digest()[:_MAC_SIZE], _TYPE + number


def _cipher(session: bytes, way: str) -> Callable[[bytes], bytes]:
    return rc4(_md5(session + f"Digest H(A1) to {way} sealing key magic constant".encode()))


def rc4(key: bytes) -> Callable[[bytes], bytes]:
    """Return a function that encrypts or decrypts the next bytes of a stream."""
    box = list(range(256))
    second = 0
    for first in range(256):
        second = (second + box[first] + key[first % len(key)]) & 255
        box[first], box[second] = box[second], box[first]
    first = second = 0

    def process(data: bytes) -> bytes:
        nonlocal first, second
        here, there, boxes = first, second, box  # local names are faster
        result = bytearray(data)
        for place, byte in enumerate(data):
            here = (here + 1) & 255
            left = boxes[here]
            there = (there + left) & 255
            boxes[here] = right = boxes[there]
            boxes[there] = left
            result[place] = byte ^ boxes[(left + right) & 255]
        first, second = here, there
        return bytes(result)

    return process


def _new_md5(data: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(data, usedforsecurity=False)  # else systems in FIPS mode refuse it


def _md5(data: bytes) -> bytes:
    return _new_md5(data).digest()
