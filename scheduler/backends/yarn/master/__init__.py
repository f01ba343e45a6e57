"""roost's application master, which runs in a container of the YARN cluster.

    service ── messages ──→ main (RpcServer) ──→ master
                                                   ├── allocation     asks, grants, withdrawals: one heartbeat at a time
                                                   ├── resource_manager   registers, fails over, registers again
                                                   └── node_managers      start and stop containers
                                                         both ──→ hadoop_rpc ── sasl, tokens, wire + schema (protobuf)

It needs Python with pyzmq on the node, and nothing of Hadoop's Java libraries. It imports the standard library, zmq,
`roost.placement.model`, `roost.launchers.protocol` and `roost.launchers.daemon`. Its events go to `applications` in the
service.
"""
