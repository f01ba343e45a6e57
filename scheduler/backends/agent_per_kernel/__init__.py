"""Backends with one agent per kernel: the lease is a pod or container, and the agent is its first process.

    AgentPerKernelBackend ── claim, release, leases ──→ PodCluster (one per cluster manager): create, delete, list
             │                                              │ changes: pod, gone, nodes, resync
             └── reserve, release, stop ──→ the agent in each pod ←┘ (its address, once it is ready)

`PodCluster` is all that a new cluster manager implements.
"""

from __future__ import annotations

from .backend import AgentPerKernelBackend as AgentPerKernelBackend
from .pods import Pod as Pod
from .pods import PodChange as PodChange
from .pods import PodCluster as PodCluster
from .pods import agent_command as agent_command
from .pods import dump_lease as dump_lease
from .pods import load_lease as load_lease
from .pods import read_address as read_address
