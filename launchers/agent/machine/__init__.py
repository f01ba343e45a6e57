"""The machine: its GPUs, disks, ports and processes, and their use.

    Agent ──> StatusFeed ──> the status for subscribers, after a noticeable change        status_feed
      ├──> NodeMetrics: the size and the use of this machine                              node_metrics
      │        └──> DeviceReader: GPUs by NVML, or as declared                            gpus
      ├──> GpuLocks: divides GPUs that the manager counts but does not assign             gpu_locks
      ├──> list_gpus: the GPUs for these locks, on a node without `pynvml`                nvml
      ├──> DiskRoom: cuts the logs of kernels that grow too long                          disk_room
      └──> Session: the processes of a kernel, also for `launch` and `limits`             sessions
    launch ──> sockets that listen, or port numbers that no other agent takes             ports
    GpuLocks, ports ──> names in the abstract namespace, which say who has them           claims

This room stands above `leases`, because the node's status has the promises of its ledger.
"""
