"""Reads and formats amounts of memory: `8GiB`, `512MB`, `2g`, plain bytes."""

from __future__ import annotations

import re

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_AMOUNT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgtp]?)(i?b|i)?", re.IGNORECASE | re.ASCII)
_LARGEST_BYTES = 1 << 60


def parse_bytes(text: str | int | float) -> int:
    """Return the bytes in `text`; raises `ConfigError`.

    `KiB` and a bare `k` are 1024 bytes, as in Docker; `kB` and `KB` are 1000 bytes. A number without unit is in bytes.
    A fraction of a byte is cut off.
    """
    match = None if isinstance(text, bool) else _AMOUNT.fullmatch(str(text).strip())
    if match is None:
        raise _build_error(text, "is not an amount of memory")
    number, prefix, suffix = match.group(1), match.group(2).lower(), (match.group(3) or "").lower()
    if suffix.startswith("i") and not prefix:
        raise _build_error(text, "is not an amount of memory")
    base = 1000 if suffix == "b" else 1024
    amount = float(number) * base ** _POWERS[prefix]
    if amount > _LARGEST_BYTES:
        raise _build_error(text, "is more memory than any machine has")
    return int(amount)


def format_bytes(amount_bytes: float) -> str:
    """Return the amount in binary units with at most one decimal: `8 GiB`, `1.5 GiB`, `0 B`."""
    # As `placement.text.size`, which is behind numpy, and may import nothing of ours.
    amount, unit = float(amount_bytes), "B"
    for bigger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(amount) < 1023.95:
            break
        amount, unit = amount / 1024, bigger
    shown = f"{amount:.1f}" if unit != "B" else f"{amount:.0f}"
    return f"{shown.removesuffix('.0')} {unit}"


def _build_error(text: object, why: str) -> Exception:
    from roost.scheduler.errors import (
        ConfigError,  # late: errors bring zmq, which `roost --help` does not need
    )

    return ConfigError(f"{str(text)[:40]!r} {why}: write it as 8GiB, 512MB, 2g or in bytes.")
