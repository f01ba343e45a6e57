"""The examples in docstrings are run."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["", ".model", ".snapshot", ".decision", ".pipeline", ".workload"])
def test_examples(name: str) -> None:
    result = doctest.testmod(import_module(f"roost.placement{name}"))
    assert result.attempted
    assert not result.failed
