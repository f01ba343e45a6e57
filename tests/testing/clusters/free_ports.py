"""Ports for processes that start later, or again."""

from __future__ import annotations

import secrets
import socket

_FIRST, _LAST = 12_000, 20_000
"""The range of these ports. From higher ones, agents choose ports for kernels, and Linux those of connections."""


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
