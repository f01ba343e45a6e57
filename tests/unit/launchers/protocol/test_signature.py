"""Signatures are those of jupyter_client."""

from __future__ import annotations

import pytest
from jupyter_client.session import Session

from roost.launchers.protocol.signature import Signer, is_scheme


@pytest.mark.parametrize("scheme", ["hmac-sha256", "hmac-md5"])
def test_jupyter_accepts_the_signature(scheme: str) -> None:
    session = Session(key=b"a key", signature_scheme=scheme)
    _, signature, *parts = session.serialize(session.msg("execute_request", {"code": "1"}))
    signer = Signer(b"a key", scheme)
    assert signer.sign([*parts, b"a buffer"]) == signature
    assert signer.is_right(signature, parts)
    assert not signer.is_right(signature, [*parts[:3], b"{}"])
    assert not Signer(b"another key", scheme).is_right(signature, parts)


def test_without_a_key_there_is_no_signature() -> None:
    assert Signer(b"", "hmac-sha256").sign([b"a"]) == b""
    assert not Signer(b"", "hmac-sha256").is_right(b"0", [b"a"])


def test_schemes_that_cannot_be() -> None:
    assert is_scheme("hmac-sha256")
    assert not any(is_scheme(name) for name in ("sha256", "hmac-", "hmac-crc32", "hmac-shake_128", None, 7))
