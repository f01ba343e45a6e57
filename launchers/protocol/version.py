"""roost's version, and the comparison of versions. An older agent or service makes room for a newer one."""

from __future__ import annotations

import roost

VERSION = roost.__version__


def parse_version(version: str) -> tuple[int, ...]:
    """Return `"1.10.2"` as `(1, 10, 2)`, for comparisons. A part that is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
