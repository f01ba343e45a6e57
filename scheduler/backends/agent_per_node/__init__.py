"""Backends with one agent per node and user: the cluster manager holds the leases, and the agents run the kernels.

    core ──> AgentPerNodeBackend                                                               backend
       ^        ├──> ClusterManager: join, read the nodes, claim, release, start an agent      manager
       │        │        └── Membership: the nodes, or why the manager is away                 membership
       │        ├──> AgentPool ──> the agent of a node: reserve, launch, release               agents
       │        ├──> SilentAgents: nodes whose agents do not answer, which get no kernels      silent_agents
       │        ├──> WaitingLeases ──> NewNodes: claims without a node, on clusters that grow  new_nodes
       │        ├──> OutageRecovery: claims the leases of live kernels again                   outage
       │        └──> NodeTable: leases by node ──> the snapshot                                node_table
       └── BackendEvents: the nodes changed, a lease was lost, leases must be read again

`ClusterManager` is all that Ray and Dask implement. `settings` has the settings that they share. A claim goes to the
manager first, and then to the agent, which notes the lease and begins the launch. Changes come from the manager's nodes
and from the agents' events. The file `agents.json` keeps the agents' addresses for the next service.

This package stands above `config`, and below `ray` and `dask`.
"""
