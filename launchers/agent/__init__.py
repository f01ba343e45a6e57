"""The agent: roost's process on a node. It starts, watches, signals and stops kernels.

    scheduler ── one encrypted port ──> agent (main) ── ledger            leases, as files
                                         │   ├──────── manager_watch     has the node left its cluster?
                                         │   │         address_watch
                                         │   ├──────── node_metrics, usage, gpus, nvml, gpu_locks
                                         │   └──────── limits            confinement, cgroups
                                         ▼
                                      kernels ──> start ──> zygote_pool ──> zygote ── fork ──> kernel
                                         │          │       (fingerprint, folder_watch, fork_report)
                                         │          └─────> exec of the kernelspec's argv ───> kernel (ports)
                                         └─ child_reaper    exit codes, and what kernels leave behind (sessions)

`find_or_start` finds the agent of a user and machine, or starts it. `first_process` is the agent's program in a pod or
container.
"""
