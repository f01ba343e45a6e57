"""The signature of Jupyter's messages: HMAC over header, parent header, metadata and content."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

_JSON_PARTS = 4


def is_scheme(name: object) -> bool:
    """True if the name is that of a usable signature scheme, such as `hmac-sha256`."""
    if not isinstance(name, str) or not name.startswith("hmac-"):
        return False
    try:
        Signer(b"any", name).sign([])
    except (ValueError, TypeError):  # unknown, or a hash without a fixed length
        return False
    return True


class Signer:
    """A signer for the messages of one connection. Without a key, signatures are empty."""

    def __init__(self, key: bytes, scheme: str) -> None:
        self._keyed = hmac.new(key, digestmod=scheme.removeprefix("hmac-")) if key else None

    def sign(self, parts: Sequence[bytes]) -> bytes:
        """Return the signature of a message, given by its parts after the signature. Buffers do not count."""
        if self._keyed is None:
            return b""
        signature = self._keyed.copy()
        for part in parts[:_JSON_PARTS]:
            signature.update(part)
        return signature.hexdigest().encode()

    def is_right(self, signature: bytes, parts: Sequence[bytes]) -> bool:
        """True if the signature is that of the message."""
        return hmac.compare_digest(self.sign(parts), signature)
