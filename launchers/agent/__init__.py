"""The agent: roost's process on a node. It starts, watches, signals and stops kernels.

    scheduler ══ one encrypted port ══> RpcServer ──> Agent: a method for each operation
        ^                                               ├──> leases/    the ledger, and watches over the cluster
        │                                               ├──> machine/   GPUs, disks, ports, sessions, real use
        └── events: reserved, launched, exited, ────────┤
            released, warned, lost, status              ├──> limits/    control groups, or a watch over processes
                                                        └──> launch/    the kernels
                                                               ├──> warm/ ──> zygote ── fork ──> kernel
                                                               ├──> exec of the kernelspec's argv ──> kernel
                                                               └──> output/   what each kernel publishes

`agent` has the operations, and `main` the process. `find_or_start` finds the agent of a user and machine, or starts it.
`on_host` answers a service that has only a login on this machine.
`first_process` is the program of a pod or container: an agent from one archive.
`on_host` answers a service that only has a login to a machine. `interpreter_probe` tests a kernelspec's Python.

The rooms form a stack: `leases` and `warm`, `machine`, `limits` and `output`, `launch`, and then the files of this
folder. All stand above `protocol`, through which backends and the core call the agent.
"""
