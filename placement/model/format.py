"""Amounts as text in sentences for people."""

from __future__ import annotations

_LARGE = 1e15
"""Amounts from this one on are shown with an exponent."""


def format_amount(value: float) -> str:
    """Return ``1``, ``0.25`` or ``1.5``: at most three decimals (four below 0.001), and no trailing zeros.

    Large: ``1e+30``.
    """
    if abs(value) >= _LARGE:
        return f"{value:.4g}"
    decimals = 3 if abs(value) >= 0.001 else 4
    return f"{round(value, decimals) + 0.0:.{decimals}f}".rstrip("0").rstrip(".")


def format_bytes(value: float) -> str:
    """Return ``8 GiB`` or ``512 MiB``: binary units, and at most one decimal."""
    for unit, factor in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if abs(value) >= factor:
            return f"{value / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{value:.0f} byte{'' if round(value) == 1 else 's'}"


def format_count(count: float, word: str, plural: str = "") -> str:
    """Return ``1 GPU``, ``0.5 GPU``, ``2 GPUs`` or ``0 GPUs``; `plural` is for words that do not just add an s."""
    return f"{format_amount(count)} {word if 0 < count <= 1 else plural or f'{word}s'}"


def format_age(seconds: float) -> str:
    """Return an age in one unit: ``90 s``, ``12 min``, ``3 h`` or ``2 d``. It is never rounded up."""
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds // length_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
