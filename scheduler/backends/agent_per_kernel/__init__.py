"""Backends with one agent per kernel: the lease is a pod or container, and the agent is its first process.

    AgentPerKernelBackend ── claim, release, leases ──→ PodCluster (one per cluster manager): create, delete, list
             │                                              │ changes: pod, gone, nodes, resync
             └── reserve, release, stop ──→ the agent in each pod ←┘ (its address, once it is ready)

`PodCluster` is all that a new cluster manager implements.
"""

from __future__ import annotations

from .backend import AgentPerKernelBackend
from .pods import Pod, PodChange, PodCluster, agent_command, dump_lease, load_lease, read_address

__all__ = [
    "AgentPerKernelBackend",
    "Pod",
    "PodChange",
    "PodCluster",
    "agent_command",
    "dump_lease",
    "load_lease",
    "read_address",
]
