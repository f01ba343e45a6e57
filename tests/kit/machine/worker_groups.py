"""Which tests run on one worker of `pytest -n 4 --dist loadgroup`."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

_ON_A_CLUSTER = re.compile(
    r"tests/(?:contract|lifecycle)/.*(?<![a-z])(dask_tls|dask|kubernetes|ray|yarn)(?![a-z])"
)


def group_of(test: str) -> str:
    """Return the group of a test from its id: a cluster, which only one worker starts, or its file."""
    on_a_cluster = _ON_A_CLUSTER.match(test)
    return on_a_cluster[1] if on_a_cluster else test.partition("::")[0]


class GroupScheduling(LoadScopeScheduling):
    """A distribution of tests: each group runs on one worker. Groups start in the order of their tests' collection."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
