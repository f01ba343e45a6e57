"""A placement policy that starts at most three kernels of one user on a node. docs/policies.md explains it."""

from __future__ import annotations

from collections.abc import Mapping

from roost.placement import NOWHERE, Decision, Policy, Request, Snapshot, Workload
from roost.placement.shipped_policies import balanced

MOST = 3


class FewOfOneUser:
    name = "few_of_one_user"

    def __init__(self, ranking: Policy) -> None:
        self._ranking = ranking

    def place(self, request: Request, snapshot: Snapshot, *, avoid: Mapping[str, str] = NOWHERE) -> Decision:
        full = (snapshot.kernels_of(request.owner) >= MOST).nonzero()[0]
        reason = f"runs {MOST} kernels of {request.owner}"
        avoid = {**{snapshot.nodes[row]: reason for row in full}, **avoid}
        return self._ranking.place(request, snapshot, avoid=avoid).changed_to(policy=self.name)


def few_of_one_user(workload: Workload) -> Policy:
    return FewOfOneUser(balanced(workload))
