"""Which tests run on one worker of `pytest -n 4 --dist loadgroup`."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

from kit.machine.run_parts import group_of


class GroupScheduling(LoadScopeScheduling):
    """A distribution of tests: each group runs on one worker. Groups start in the order of their tests' collection."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
