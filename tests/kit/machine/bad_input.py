"""Input that no reader expects: files that are none, and JSON values of any form."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

Input = TypeVar("Input")

INPUTS = int(os.environ.get("ROOST_MESSAGES", "2000"))
"""How many inputs of any form a test tries. `make long` sets ROOST_MESSAGES."""
DEEP = b"[" * 200_000
"""A JSON text that nests too deeply for Python's reader."""


def _make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 30)


BAD_FILES: Mapping[str, Callable[[Path], object]] = {
    "brackets": lambda path: path.write_bytes(DEEP),
    "folder": lambda path: path.mkdir(),
    "loop": lambda path: path.symlink_to(path),
    "link": lambda path: path.symlink_to("/etc/hostname"),
    "pipe": lambda path: os.mkfifo(path),
    "sparse": _make_sparse,
    "bytes": lambda path: path.write_bytes(b"\xff\xfe{\x00"),
    "empty": lambda path: path.touch(),
    "number": lambda path: path.write_text("7"),
    "infinite": lambda path: path.write_text('{"pid": 1e999, "started_at": -Infinity, "managers": [1e999]}'),
    "types": lambda path: path.write_text('{"lease": [], "pid": "x", "managers": {"a": 1}, "endpoint": 7}'),
}
"""For each kind of bad file, a function that makes one at a path."""
any_number = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, -(2**63), 10**300, 1e308, -1]))


def any_value(*texts: str) -> st.SearchStrategy[Any]:
    """Return a strategy of JSON values. The `texts` are among its texts and the names of its fields."""
    some_text = st.one_of(
        st.text(max_size=20),
        st.sampled_from(["", "\ud800", "\x1b[2J", "../..", "\0", "\n", "x" * 300, *texts]),
    )
    return st.recursive(
        st.one_of(st.none(), st.booleans(), any_number, some_text),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(some_text, inner, max_size=3)),
        max_leaves=8,
    )


def generate(count: int) -> settings:
    """Return settings for `count` random inputs, in a test that takes a while."""
    return settings(
        max_examples=max(1, count),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def draw_inputs(inputs: st.SearchStrategy[Input], count: int) -> list[Input]:
    """Return `count` random inputs for a test that is async."""
    drawn: list[Input] = []

    @generate(count)
    @given(inputs)
    def collect(each: Input) -> None:
        drawn.append(each)

    collect()
    return drawn
