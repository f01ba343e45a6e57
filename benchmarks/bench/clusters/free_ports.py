"""Ports for processes that start later, or again."""

from __future__ import annotations

import secrets
import socket

_FIRST, _LAST = 20_000, 32_000
"""The range of these ports. It lies below the range from which Linux gives ports to sockets by itself."""


def free_port() -> int:
    """Return a port that nobody uses, at any address of this machine."""
    while True:
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
