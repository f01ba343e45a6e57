"""The `roost` command with a stub client."""

from __future__ import annotations

import pytest

import roost
from kit.fakes.client import StubClient


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> StubClient:
    """Return the stub client that `roost.connect` returns in this test. The terminal has 80 columns."""
    stub = StubClient()
    monkeypatch.setattr(roost, "connect", lambda backend, **options: stub)
    monkeypatch.setattr("roost.provisioners.kernelspecs.find_problems", lambda silent=None: [])
    monkeypatch.setattr("roost.provisioners.server_extension.setup_check.find_problems", list)
    monkeypatch.setattr("roost.scheduler.cli.machine.find_problems", list)
    monkeypatch.setenv("COLUMNS", "80")
    return stub
