"""Where a kernel goes: pure ranking of nodes for a request. No I/O, no clock.

A policy of one's own is a ``Pipeline`` of ``roost.placement.filters`` and ``roost.placement.scorers`` or of
others, or any object with a name and ``place``; ``policy`` finds it by ``module:Name``.

>>> snapshot = Snapshot.of([Node(id="a", cpus=4), Node(id="b", cpus=8)])
>>> policy("round_robin").place(Request(cpus=1), snapshot).placement.node_id
'b'
"""

from .decision import Decision, Placement, Refusal, Refused
from .model import EPSILON, Device, Node, Request
from .pipeline import NOWHERE, Filter, Pipeline, Policy, Ties
from .scorers import Scorer
from .shipped_policies import policy
from .snapshot import Columns, Snapshot
from .workload import Profile

__all__ = [
    "EPSILON",
    "NOWHERE",
    "Columns",
    "Decision",
    "Device",
    "Filter",
    "Node",
    "Pipeline",
    "Placement",
    "Policy",
    "Profile",
    "Refusal",
    "Refused",
    "Request",
    "Scorer",
    "Snapshot",
    "Ties",
    "policy",
]
