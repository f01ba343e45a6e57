"""No code outside a backend's folder names a backend, so that a backend can be a package of its own."""

from __future__ import annotations

import ast
from pathlib import Path

from roost.scheduler.backends.registry import backend_names

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ROOT / "scheduler" / "backends"

MIGRATION = ROOT / "provisioners" / "migration"
"""Translates kernelspecs of other systems, so it names the backend in the place of each of theirs."""
ALLOWED = {("scheduler/backends/spec.py", "local")}
"""The allowed (file, backend name): one constant names the default backend."""


def test_backends_are_named_in_their_folders_only() -> None:
    names = set(backend_names())
    assert names >= {"dask", "local", "ray"}
    found = set()
    for package in ("launchers", "placement", "provisioners", "scheduler"):
        for path in (ROOT / package).rglob("*.py"):
            if any(path.is_relative_to(each) for each in (MIGRATION, *(BACKENDS / name for name in names))):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and node.value in names:
                    found.add((path.relative_to(ROOT).as_posix(), node.value))
    assert found == ALLOWED
