"""Amounts of memory, read and shown."""

from __future__ import annotations

import pytest

from roost.scheduler.config.memory_size import parse_bytes
from roost.scheduler.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8GiB", 8 << 30),
        ("8 gib", 8 << 30),
        ("2g", 2 << 30),
        ("2Gi", 2 << 30),
        ("512MB", 512_000_000),
        ("1kB", 1000),
        ("1.5G", 3 << 29),
        (".5k", 512),
        ("100", 100),
        ("100b", 100),
        (" 0 ", 0),
        (4096, 4096),
        (1.0, 1),
    ],
)
def test_reads_amounts_as_people_write_them(text: str | int | float, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "lots", "-1", "-1GiB", "8GB8", "8 i", "8iB", "nan", "inf", "1e3", "9999PiB", True, "٣g"]
)
def test_refuses_other_texts_with_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_bytes(text)
    assert "8GiB" in caught.value.user_message
    assert "\n" not in caught.value.user_message
