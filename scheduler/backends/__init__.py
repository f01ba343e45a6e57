"""The backends: the adapters between roost and cluster managers. This folder has what all share, and a folder for each.

    service ── the backend's name ──> registry ──> BackendSpec ──> the backend's own module     registry, spec
       │
    core ──> Backend: snapshot, claim, release, leases, agent                                   base
       ^        ├── local/                                  one node, this machine
       │        ├── agent_per_node/   <── ray/, dask/, ssh/ one agent for each user and node
       │        └── agent_per_kernel/ <── kubernetes/, yarn/    one agent in each pod or container
       ├── LeaseBook: what the core wants of each lease, and what the cluster shows             lease_book
       ├── BackendEvent, EventQueue: nodes, warnings, resync                                    base, event_queue
       └── AgentEvent <── Agents: connections to agents, which core and backends share          agent_calls

`node_archive` brings the agent's code to a node. `key_pair` has the keys of the service for agents. `more_room`
tells when another user's promise on a machine has ended. `node_types` reads the kinds of
nodes that a cluster could start, as its operator writes them.

The files of this folder stand below `config`, and the folders in it above `config`. A backend and its cluster library
are imported in the service, and when a new kernelspec is checked (`BackendSpec.check`). A backend in another package
is found in the same way.
"""
