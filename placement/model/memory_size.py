"""Reads amounts of memory: `8GiB`, `512MB`, `2g`, plain bytes."""

from __future__ import annotations

import re

_PREFIXES = ("", "k", "m", "g", "t", "p")
_AMOUNT = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(?:([kmgtp])(i?b|i)?|b)?", re.ASCII)
_LARGEST_BYTES = 1 << 60


def read_bytes(text: str | int | float) -> int:
    """Return the bytes in `text`; raises `ValueError`.

    `KiB` and a bare `k` are 1024 bytes, as in Docker; `kB` and `KB` are 1000 bytes. A number without unit is in bytes.
    A fraction of a byte is cut off.
    """
    match = None if isinstance(text, bool) else _AMOUNT.fullmatch(str(text).strip().lower())
    if match is not None:
        number, prefix, suffix = match.groups("")
        amount = float(number) * (1000 if suffix == "b" else 1024) ** _PREFIXES.index(prefix)
        if amount <= _LARGEST_BYTES:
            return int(amount)
    raise ValueError(f"{str(text)[:40]!r} is not an amount of memory: write 8GiB, 512MB, 2g or bytes.")
