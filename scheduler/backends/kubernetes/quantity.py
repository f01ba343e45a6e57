"""Kubernetes' quantities, such as `500m` and `1Gi`."""

from __future__ import annotations

import math

_UNITS = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60,
}  # fmt: skip


def parse_quantity(text: str | int | float) -> float:
    """Return the amount. Raises `ValueError`.

    >>> parse_quantity("500m"), parse_quantity("1Gi"), parse_quantity("1e3")
    (0.5, 1073741824.0, 1000.0)
    """
    text = str(text)
    number = text.rstrip("numkKMGTPEi")
    if number and text[len(number) :] in _UNITS:
        return float(number) * _UNITS[text[len(number) :]]
    return float(text)


def format_cpus(cpus: float) -> str:
    """Return CPUs as a quantity, rounded up to thousandths.

    >>> format_cpus(0.25)
    '250m'
    """
    return f"{math.ceil(round(cpus * 1000, 6))}m"
