"""The examples in docstrings run."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest

MODULES = """
. .decision .engine.columns .model .pipeline .refusals .replay .scorers
.shipped_policies .snapshot .workload
"""


@pytest.mark.parametrize("name", MODULES.split())
def test_examples(name: str) -> None:
    result = doctest.testmod(import_module(f"roost.placement{name}".rstrip(".")))
    assert result.attempted
    assert not result.failed
