"""The parts of roost on a node: they start kernels fast, watch them and stop them.

    scheduler ══ protocol ══> agent ──fork──> zygote ──> kernel
                                └─────exec──────────────> kernel

- `protocol`: messages, encrypted calls between processes, and the agent's client
- `daemon`: background processes, private files, and functions for asyncio
- `machine_book`: a folder in which the agents of all users of one machine promise it
- `agent`: the process on a node that owns leases and kernels
- `zygote`: a warm process, in the kernel's own Python, from which ipykernels are forked

`daemon` and `zygote` are ground floors. Above `daemon` stand `machine_book` and `protocol`, and above those `agent`.
`zygote` imports no other part of roost. The other four need only `roost.placement.model` and the packages that
ipykernel brings. Therefore they can be sent to a node that has ipykernel and nothing else.
"""
