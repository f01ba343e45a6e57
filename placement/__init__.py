"""Placement chooses the node and the devices for a request. It does no I/O and reads no clock.

    Request ──────┐
    Snapshot ─────┤  all nodes at one instant                                     model.py, snapshot.py
                  ▼
    Policy.place(request, snapshot, avoid=...)                                    shipped_policies.py
                  │
      Pipeline    ├─ filters   refuse nodes, each with a reason                   filters.py
                  ├─ scorers   rate the rest; weights make one sum                scorers.py, packing.py
                  └─ best node and devices; ties go to the smallest id            pipeline.py
                  ▼
    Decision: placement, runners-up, refusals                                     decision.py, explanation.py

Policies learn only from a ``Workload``, a summary of recent requests (workload.py). ``engine`` keeps the scores between
decisions, so that only changed nodes are scored again. ``replay`` lets a policy place a whole stream of requests, so
that policies can be compared.

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
    from .model import EPSILON, Device, Node, Request
    from .pipeline import NOWHERE, Filter, Pipeline, Policy, Ties
    from .refusals import Refusal, RefusalGroup
    from .scorers import Scorer
    from .shipped_policies import get_policy
    from .snapshot import Columns, Snapshot
    from .workload import Workload

_HOMES = {
    "decision": ["Decision", "Placement"],
    "model": ["EPSILON", "Device", "Node", "Request"],
    "pipeline": ["NOWHERE", "Filter", "Pipeline", "Policy", "Ties"],
    "refusals": ["Refusal", "RefusalGroup"],
    "scorers": ["Scorer"],
    "shipped_policies": ["get_policy"],
    "snapshot": ["Columns", "Snapshot"],
    "workload": ["Workload"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["EPSILON", "NOWHERE", "Columns", "Decision", "Device", "Filter", "Node", "Pipeline", "Placement"]
__all__ += ["Policy", "Refusal", "RefusalGroup", "Request", "Scorer", "Snapshot", "Ties", "Workload"]
__all__ += ["get_policy"]


def __getattr__(name: str) -> object:
    """Import the object of a public name, keep it here and return it. Raise `AttributeError` for another name."""
    if name not in _HOME:
        raise AttributeError(f"module 'roost.placement' has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
