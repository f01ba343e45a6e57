"""Placement chooses the node and the devices for a request. It does no I/O and reads no clock.

    Request ──────┐                                                               model/
    Snapshot ─────┤  all nodes at one instant                                     tables/
                  ▼
    Policy.place(request, snapshot, avoid=...)                                    shipped_policies.py
                  │
      Pipeline    ├─ filters   refuse nodes, each with a reason                   rules/
                  ├─ scorers   rate the rest; weights make one sum                rules/
                  ├─ scores are kept; only changed nodes are scored again         engine/
                  └─ best node and devices; ties go to the smallest id            pipeline.py
                  ▼
    Decision: placement, runners-up, refusals                                     decision.py, explanation.py
                  │  without a placement, on a cluster that can grow:
                  └─ the same policy on one empty node of each type               new_nodes.py

The folders form a stack: ``model``, then ``tables``, ``rules`` and ``engine``, then the files of this folder. Policies
learn only from a ``Workload``, a summary of recent requests.

The public names are imported on first use (PEP 562). Only a snapshot, a workload or a policy imports numpy.

>>> from roost.placement import Node, Request, Snapshot, get_policy
>>> snapshot = Snapshot.of([Node(id="a", cpus=4), Node(id="b", cpus=8)])
>>> get_policy("round_robin").place(Request(cpus=1), snapshot).placement.node_id
'b'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .decision import Decision, Placement
    from .model import EPSILON, Device, Node, NodeType, Request
    from .pipeline import NOWHERE, Pipeline, Policy, Ties
    from .rules.filters import Filter
    from .rules.refusals import Refusal, RefusalGroup
    from .rules.scorers import Scorer
    from .rules.workload import Workload
    from .shipped_policies import get_policy
    from .tables.snapshot import Columns, Snapshot

_HOMES = {
    "decision": ["Decision", "Placement"],
    "model": ["EPSILON", "Device", "Node", "NodeType", "Request"],
    "pipeline": ["NOWHERE", "Pipeline", "Policy", "Ties"],
    "rules.filters": ["Filter"],
    "rules.refusals": ["Refusal", "RefusalGroup"],
    "rules.scorers": ["Scorer"],
    "rules.workload": ["Workload"],
    "shipped_policies": ["get_policy"],
    "tables.snapshot": ["Columns", "Snapshot"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["EPSILON", "NOWHERE", "Columns", "Decision", "Device", "Filter", "Node", "NodeType", "Pipeline"]
__all__ += ["Placement", "Policy", "Refusal", "RefusalGroup", "Request", "Scorer", "Snapshot", "Ties"]
__all__ += ["Workload", "get_policy"]


def __getattr__(name: str) -> object:
    """Import the object of a public name, keep it here and return it. Raise `AttributeError` for another name."""
    if name not in _HOME:
        raise AttributeError(f"module 'roost.placement' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
