"""A fake service for the tests of provisioners."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.fakes.service import FakeService, fake_service
from roost.scheduler.client.client import disconnect


@pytest.fixture
def service(runtime_dir: Path) -> Iterator[FakeService]:
    with fake_service() as service:
        yield service
        disconnect()
