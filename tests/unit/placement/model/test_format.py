"""Amounts as text."""

from __future__ import annotations

from roost.placement.model.format import format_age, format_amount, format_bytes, format_count


def test_an_age_has_one_unit() -> None:
    assert [format_age(seconds) for seconds in (-5, 59, 119, 120, 7200, 172_800)] == [
        "0 s", "59 s", "119 s", "2 min", "2 h", "2 d",
    ]  # fmt: skip


def test_small_amounts_have_four_decimals_and_huge_ones_an_exponent() -> None:
    assert [format_amount(value) for value in (0.0004, 0.0014, 0.00004, -0.0)] == [
        "0.0004",
        "0.001",
        "0",
        "0",
    ]
    assert [format_amount(value) for value in (1e30, -1e308, 123456789.5)] == [
        "1e+30",
        "-1e+308",
        "123456789.5",
    ]
    assert format_count(1e308, "CPU") == "1e+308 CPUs"


def test_one_byte_is_singular() -> None:
    assert [format_bytes(value) for value in (0, 1, 2, 1024)] == ["0 bytes", "1 byte", "2 bytes", "1 KiB"]
