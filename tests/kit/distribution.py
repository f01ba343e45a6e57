"""The scheduler of `pytest -n 4 --dist loadgroup`: which tests run on which worker, and which run alone.

Each test belongs to a group, and a group runs on one worker:
- the tests in `ALONE` run last, when every other worker has ended
- the tests that share a cluster run on one worker, which alone starts that cluster
- else the tests of a file belong together, because they share the fixtures of their module
"""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

ALONE = {
    "tests/fault/": "kills processes, and measures how soon that is noticed",
    "tests/lifecycle/test_dask_join.py": "measures how soon a join fails",
    "tests/lifecycle/test_ray_join.py": "measures how soon a join fails",
}
"""Prefixes of the ids of tests that no other test may disturb, and the reasons."""

_ON_A_CLUSTER = re.compile(
    r"tests/(?:contract|lifecycle)/.*(?<![a-z])(dask_tls|dask|kubernetes|ray|yarn)(?![a-z])"
)


def group_of(test: str) -> str:
    """Return the group of a test from its id: `alone`, a cluster or its file."""
    if test.startswith(tuple(ALONE)):
        return "alone"
    on_a_cluster = _ON_A_CLUSTER.match(test)
    return on_a_cluster[1] if on_a_cluster else test.partition("::")[0]


class GroupsThenAlone(LoadScopeScheduling):
    """A scheduler of groups that keeps the group `alone` until one worker is left.

    A worker runs its last test only when it knows what follows. An idle worker therefore has one pending test. It runs
    that test, and ends the fixtures of its session, when it is told to shut down.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if "alone" in self.workqueue:
            self.workqueue.move_to_end("alone")
        if not self._is_alone_next() or len(self.nodes) == 1:
            super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        if not self._is_alone_next() or len(self.nodes) == 1:
            super()._reschedule(node)
        elif self._pending_of(self.assigned_work[node]) <= 1 and any(
            not other.shutting_down for other in self.nodes if other is not node
        ):
            node.shutdown()

    def remove_node(self, node: WorkerController) -> str | None:
        crashed = super().remove_node(node)
        for other in self.nodes:  # the last one may have waited for this moment
            self._reschedule(other)
        return crashed

    def _is_alone_next(self) -> bool:
        return list(self.workqueue) == ["alone"]
