"""The limits: each kernel gets the memory and the CPUs of its lease.

    Agent ──> Limits ──> a Confinement for each lease                                     limits, confinement
      │  ^      │           ├── GroupConfinement: a control group that the agent makes    cgroups
      │  │      │           ├── WatchedConfinement: a limit per process, and a watch over their sum
      │  │      │           └── ManagedConfinement: the manager limits the pod or container
      │  └──────┴─ on_near: a kernel is about to use all its memory
      └──> UsageMeter: what each kernel uses of CPUs, memory and memory of GPUs           usage

`launch` starts a kernel within the control group of its lease.
"""
