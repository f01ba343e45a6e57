"""The known differences: `tests/conformance/programs/differences.toml`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import lru_cache

from .program import FOLDER

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@lru_cache
def read_differences() -> Mapping[tuple[str, str], str]:
    """Return the reason why a program differs on a kind of kernels, by both names."""
    listed = tomllib.loads((FOLDER / "differences.toml").read_text())
    return {(program, kind): reason for program, kinds in listed.items() for kind, reason in kinds.items()}
