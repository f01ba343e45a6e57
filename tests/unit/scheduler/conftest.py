"""Every test of the scheduler begins without the failures that earlier tests have left."""

from __future__ import annotations

import pytest

from roost.launchers.daemon import supervision


@pytest.fixture(autouse=True)
def no_earlier_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `roost doctor` report no failure of another test, which it does for five minutes."""
    monkeypatch.setattr(supervision, "_failures", {})
