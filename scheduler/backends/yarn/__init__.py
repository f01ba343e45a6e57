"""Kernels in containers of a Hadoop YARN cluster: the container is the lease, and roost's agent is its first process.

    service ── REST ──→ ResourceManager ── starts ──→ master (one application for each service, queue and priority)
       ├─── roost's RPC ──→ master ── Hadoop RPC ──→ ResourceManager (asks), NodeManagers (starts and stops containers)
       └─── roost's RPC ──→ agent, the first process of each container

A claim asks for a container on the chosen node. YARN's own scheduler decides.
"""
