"""The protocol between processes: messages, their JSON form, encrypted calls, and the agent's client.

    scheduler                                                          agent
    AgentClient ──> RpcClient ══ CURVE-encrypted TCP ══> RpcServer ──> one handler per operation
        │              └────────── json_codec ───────────────┘             │
        └────────────── messages, shared_values (frozen dataclasses) ──────┘

The scheduler's service and its clients use the same `rpc` and `json_codec` over a Unix socket.
"""
