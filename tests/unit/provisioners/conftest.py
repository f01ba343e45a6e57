"""A fake service for the tests of provisioners."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.fakes.service import FakeService, fake_service
from roost.scheduler.client.client import disconnect
from roost.testing.deadlines import allow_s


@pytest.fixture
def service(runtime_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeService]:
    monkeypatch.setattr("roost.scheduler.client.client._CLOSE_S", allow_s(60))
    with fake_service() as service:
        yield service
        disconnect()
