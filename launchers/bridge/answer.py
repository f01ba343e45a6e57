"""The answer of a launcher: where its kernel listens, and with which keys. It arrives encrypted.

An answer is the base64 of a JSON object {"version": 1, "key": K, "conn_info": C}. K is an AES key, encrypted with the
listener's public key (RSA, PKCS #1 v1.5). C is the kernel's connection file with a few more fields, encrypted with the
AES key (ECB). K and C are in base64.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from roost.launchers.daemon.json_text import UnfitText, parse_json
from roost.launchers.protocol.shared_values import PORT_NAMES
from roost.launchers.protocol.signature import is_scheme

MOST_BYTES = 64 << 10
"""The greatest size of an answer. Those of real launchers have about 1,500 bytes."""
_RSA_BITS = 2048
_AES_BYTES = 16
_CURVE_KEY_CHARACTERS = 40
_MOST_KEY_CHARACTERS = 256
_ALL_ADDRESSES = ("0.0.0.0", "*", "127.0.0.1", "localhost")
"""The addresses at which a launcher's ports can be reached on loopback."""


class RefusedAnswer(ValueError):
    """A text that is no answer to this launch. The error's text is a predicate, such as `is not JSON`."""


class OldLauncher(RefusedAnswer):
    """An answer of version 0. `comm_port` is the port that it names, or 0."""

    def __init__(self, comm_port: int) -> None:
        super().__init__("has version 0, which anybody on the node can read and forge")
        self.comm_port = comm_port


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The connection of a launcher's kernel, whose ports are on loopback."""

    ports: Mapping[str, int]
    """The kernel's ports, by the names in `PORT_NAMES`."""
    comm_port: int
    """The port on which the launcher takes requests."""
    key: bytes = field(repr=False)
    signature_scheme: str
    curve_public: bytes | None
    """The public key of the kernel's sockets; None if they are not encrypted."""

    @property
    def all_ports(self) -> frozenset[int]:
        return frozenset([*self.ports.values(), self.comm_port])


class AnswerKey:
    """The key pair of one launch. Making one takes half a second. Raises `ImportError` without pycryptodome."""

    def __init__(self) -> None:
        from Crypto.PublicKey import RSA

        self._pair = RSA.generate(_RSA_BITS)

    @property
    def public(self) -> str:
        """The public key for the launcher's command: the base64 of its DER form."""
        return base64.b64encode(self._pair.public_key().export_key("DER")).decode()

    def read(self, content: bytes, kernel_id: str) -> Answer:
        """Return the answer in the bytes of one connection. Raises `RefusedAnswer`."""
        sealed = _decode(content, "is not base64")
        payload = _read_payload(sealed, kernel_id)
        if payload.get("version") != 1:
            raise RefusedAnswer(f"has the version {payload.get('version')!r:.20}, which is unknown")
        return _check(self._decrypt(payload), kernel_id)

    def _decrypt(self, payload: Mapping[str, Any]) -> dict[str, Any]:
        from Crypto.Cipher import AES, PKCS1_v1_5
        from Crypto.Util.Padding import unpad

        sealed_key = _decode(payload.get("key"), "has no encrypted key")
        sealed_info = _decode(payload.get("conn_info"), "has no connection")
        # A wrong key must get the same refusal as a wrong text, or refusals would help to guess the key.
        other_key = os.urandom(_AES_BYTES)
        try:
            cipher = PKCS1_v1_5.new(self._pair)
            key = cipher.decrypt(sealed_key, other_key, expected_pt_len=_AES_BYTES)
            plain = unpad(AES.new(key, AES.MODE_ECB).decrypt(sealed_info), AES.block_size)
            return _read_object(plain)
        except ValueError:
            raise RefusedAnswer("is not encrypted with the public key of this launch") from None


def _read_payload(sealed: bytes, kernel_id: str) -> dict[str, Any]:
    """Return the JSON object in an answer. Raises `OldLauncher` for the connection of a kernel in its place."""
    try:
        payload = _read_object(sealed)
    except UnfitText:
        payload = _read_old(sealed, kernel_id)
    if "version" not in payload and "shell_port" in payload:
        raise OldLauncher(payload["comm_port"] if _is_port(payload.get("comm_port")) else 0)
    return payload


def _read_old(sealed: bytes, kernel_id: str) -> dict[str, Any]:
    """Return the JSON object in an answer of version 0, whose key is the kernel's id. Raises `RefusedAnswer`."""
    from Crypto.Cipher import AES

    key = kernel_id.encode()[:_AES_BYTES]
    try:
        if len(key) < _AES_BYTES or not sealed or len(sealed) % AES.block_size:
            raise UnfitText("is not encrypted")
        return _read_object(AES.new(key, AES.MODE_ECB).decrypt(sealed).rstrip(b"%"))
    except UnfitText:
        raise RefusedAnswer("is not JSON") from None


def _read_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object in some bytes. Raises `UnfitText`."""
    value = parse_json(content)
    if not isinstance(value, dict):
        raise UnfitText("is no JSON object")
    return value


def _decode(text: object, refusal: str) -> bytes:
    try:
        if isinstance(text, (bytes, str)):
            given = (
                text.encode() if isinstance(text, str) else b"".join(text.split())
            )  # some end with a line end
            return base64.b64decode(given, validate=True)
    except (binascii.Error, UnicodeError):
        pass
    raise RefusedAnswer(refusal)


def _check(info: Mapping[str, Any], kernel_id: str) -> Answer:
    """Return the answer that the decrypted fields make. Raises `RefusedAnswer`."""
    if info.get("kernel_id") != kernel_id:
        raise RefusedAnswer("is for another kernel")
    for name in (*PORT_NAMES, "comm_port"):
        if not _is_port(info.get(name)):
            raise RefusedAnswer(f"has no usable {name}")
    key, scheme = info.get("key"), info.get("signature_scheme", "hmac-sha256")
    if not isinstance(key, str) or not 16 <= len(key) <= _MOST_KEY_CHARACTERS or not key.isprintable():
        raise RefusedAnswer("has no usable key")
    if not is_scheme(scheme):
        raise RefusedAnswer(f"has the signature scheme {scheme!r:.40}, which is unknown")
    if info.get("transport", "tcp") != "tcp" or info.get("ip", "0.0.0.0") not in _ALL_ADDRESSES:
        raise RefusedAnswer("names ports that are not on loopback")
    curve = info.get("curve_publickey")
    if curve and not (isinstance(curve, str) and len(curve) == _CURVE_KEY_CHARACTERS and curve.isascii()):
        raise RefusedAnswer("has no usable CURVE key")
    answer = Answer(
        ports={name: info[name] for name in PORT_NAMES},
        comm_port=info["comm_port"],
        key=key.encode(),
        signature_scheme=scheme,
        curve_public=curve.encode() if curve else None,
    )
    if len(answer.all_ports) <= len(PORT_NAMES):
        raise RefusedAnswer("names one port twice")
    return answer


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 16
