"""Backends with one agent per kernel: the lease is a pod or container, and the agent is its first process.

    core ──> AgentPerKernelBackend ── create, delete, list ──> PodCluster (one per cluster manager)   backend, pods
       ^             │   ^                                         │
       │             │   └─── changes: pod, gone, nodes, resync ───┤
       │             └── reserve, release ──> the agent in each pod │ (its address, once it is ready)
       └── BackendEvents                                           └── AddressReports                 address_reports

`PodCluster` is all that a new cluster manager implements. `pod_agent` has the command, the code and the address of the
agent in a pod. With `AddressReports`, its pods report their addresses sooner
than the manager does.

This package stands above the files of `scheduler/backends`, and below `kubernetes` and `yarn`.
"""

from __future__ import annotations

from .backend import AgentPerKernelBackend, PodGrowth
from .pod_agent import AGENT_PORT, agent_archive, agent_command, read_address
from .pods import Pod, PodChange, PodCluster, dump_lease, load_lease, shorten_id

__all__ = [
    "AGENT_PORT",
    "AgentPerKernelBackend",
    "Pod",
    "PodChange",
    "PodCluster",
    "PodGrowth",
    "agent_archive",
    "agent_command",
    "dump_lease",
    "load_lease",
    "read_address",
    "shorten_id",
]
