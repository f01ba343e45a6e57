"""The agent: roost's process on a node. It starts, watches, signals and stops kernels.

    scheduler ── one encrypted port ──> main (Agent) ── ledger            leases, as files
                                         │   ├──────── manager_watch     has the node left its cluster?
                                         │   └──────── node_metrics, gpus
                                         ▼
                                      kernels ──> start ──> zygote_pool ──> zygote ── fork ──> kernel
                                         │          │       (fingerprint, fork_report)
                                         │          └─────> exec of the kernelspec's argv ───> kernel (ports)
                                         └─ child_reaper    exit codes

`find_or_start` finds the agent of a user and machine, or starts it.
"""
