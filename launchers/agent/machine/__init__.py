"""The machine: its processes, GPUs, disks and ports, and what is used of it.

gpus, nvml, gpu_locks ── which GPUs there are, their real use, and who has taken one
sessions ── the processes of a kernel, and signals to them
ports ── free ports for kernels that are executed, claimed so that no other agent takes them
disk_room ── may another log or journal be written?
node_metrics ──→ status_feed   the node's real use, reported to subscribers after a noticeable change
"""
