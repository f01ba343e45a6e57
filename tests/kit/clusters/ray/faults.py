"""The faults of the contract suite on a real Ray cluster, whose grants can really come late."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from roost.scheduler.backends.ray import placement_groups
from roost.scheduler.backends.ray.manager import RayManager
from roost.testing import NodeFaults
from roost.testing.deadlines import allow_s


class RayFaults(NodeFaults):
    """Faults between roost and Ray. A withdrawn claim goes on in its thread, so Ray grants it after the withdrawal."""

    def __init__(self) -> None:
        super().__init__(RayManager)
        self._may_grant: threading.Event | None = None

    def hold_answers(self) -> None:
        """Let Ray grant claims from now on only after `answer`."""
        self._may_grant = threading.Event()

    def answer(self) -> None:
        """Let Ray grant all claims."""
        assert self._may_grant is not None
        self._may_grant.set()

    def change(self, patch: pytest.MonkeyPatch) -> None:
        super().change(patch)
        create, ask = placement_groups.create, RayManager._ask

        async def note_loop(manager: RayManager, question: Any, *asked: Any, **named: Any) -> Any:
            if question is placement_groups.create and self._may_grant is not None:
                self.is_claimed.set()
            return await ask(manager, question, *asked, **named)

        def create_late(*asked: Any, **named: Any) -> Any:
            if self._may_grant is not None:
                self._may_grant.wait(allow_s(60))
            return create(*asked, **named)

        patch.setattr(placement_groups, "create", create_late)
        patch.setattr(RayManager, "_ask", note_loop)
