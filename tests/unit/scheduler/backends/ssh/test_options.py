"""The options of one kernel: what no host can use is refused before a start queues."""

from __future__ import annotations

from typing import Any

import pytest

from roost.scheduler.backends.ssh import SPEC
from roost.scheduler.backends.ssh.options import check_options
from roost.scheduler.errors import ConfigError


@pytest.mark.parametrize("options", [{}, {"cwd": "/data"}, {"cwd": "~"}, {"cwd": "~/a", "prologue": "a\nb"}])
def test_good_options(options: dict[str, Any]) -> None:
    SPEC.check_options(options)
    check_options(options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cwd": "data"}, "cwd = 'data' is no whole path: begin it with / or ~/."),
        ({"cwd": "~ada/data"}, "is no whole path"),
        ({"cwd": "/a\0b"}, "the option cwd has a zero byte"),
        ({"prologue": "a\0b"}, "the option prologue has a zero byte"),
        ({"prologue": "a" * 20_000}, "more than 16,384 characters: shorten it"),
    ],
)
def test_options_that_no_host_can_use(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_options(options)
