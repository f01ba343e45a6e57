"""The protocol between processes: messages, encrypted calls, and the agent's client.

    scheduler                                                          agent
    AgentClient ──> RpcClient ══ CURVE-encrypted TCP ══> RpcServer ──> one handler per operation
        │  ^           │  ^                               │   │            │
        │  └─ events ──┘  └─ rpc: the wire, keys, errors ─┘   └─ UnfinishedHandshakes: strangers' connections
        └── messages, shared_values: frozen dataclasses, as JSON ──────────┘

The drawing has `agent_client`, `rpc_client`, `rpc_server` and `unfinished_handshakes`, named after their classes. The
scheduler's service and its clients use the same `rpc` over a Unix socket. `agent_settings` has the settings that a
backend gives to an agent at its start. `execution` has what a start runs, for the service and for agents alike.
`signature` signs messages to kernels. `process_context` has what a kernel on this machine takes over from its
application. `kernel_message` reads what kernels publish, for the agent's journals and for applications. `process_log`
keeps the output of kernels out of the logs of the service and the agent. `launch_checks` refuses commands that no
process can have. `start_archive` completes the archive that starts the agent of one kernel. `host_contact` has what a
service asks a host that it has a login to.

This package stands above `daemon` and `roost.placement.model`, whose `json_codec` makes the JSON.
"""
