"""The agent: roost's process on a node. It starts, watches, signals and stops kernels.

    scheduler ── one encrypted port ──> agent (main)
                                         ├──> leases/    the ledger, and watches: has the node left its cluster?
                                         ├──> machine/   GPUs, disks, ports, sessions, real use
                                         ├──> limits/    control groups, or a watch over each process
                                         ▼
                                      launch/ ──> warm/ ──> zygote ── fork ──> kernel
                                         │  └────> exec of the kernelspec's argv ───> kernel
                                         └──────> output/    the journal of what each kernel publishes

`find_or_start` finds the agent of a user and machine, or starts it. `first_process` is the agent's program in a pod or
container.
"""
