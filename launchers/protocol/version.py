"""Comparing versions of roost: who is older makes room for who is newer."""

from __future__ import annotations

import roost

__all__ = ["VERSION", "parse_version"]

VERSION = roost.__version__


def parse_version(version: str) -> tuple[int, ...]:
    """`"1.10.2"` as `(1, 10, 2)`, for comparing; what is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
