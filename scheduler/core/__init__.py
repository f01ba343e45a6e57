"""The scheduler itself: it brings each start to a kernel, keeps the table of kernels true, and ends kernels.

    service ──> Scheduler ── is the start allowed? ──> caps, OtherSchedulers     scheduler, caps, other_schedulers
                    │
                    ├──> StartRunner ──> the agent launches the kernel           start
                    │        └──> LeaseClaimer ──> Queue, snapshot, policy,      lease_claim, queue
                    │                              Backend.claim
                    ├──> KernelEnder ──> the agent ends the process,             ender
                    │        ^           Backend.release
                    │        └── OwnerWatch, IdleCuller, Reconciler              owner_watch, idle
                    ├──> Reconciler <── events of the backend and of agents      reconcile
                    │        └──> corrects the table, wakes the queue
                    ├──> find_others: resources that others than roost hold      other_holders
                    └──> UseReader, Doctor: what kernels use, what disagrees     use, diagnosis
    all of them
      ├──> KernelTable of KernelRecords, with their phases                       kernel_table, kernel_record
      │        ├──> EndedKernels: the last ones, also for the next scheduler     ended_kernels
      │        └──> EventStream ──> clients, log, metrics, decisions in the log  events
      └──> BackendAccess: the backend with drained nodes, calls to agents      backend_access

The core stands above `policies`, `config` and `backends`. Only the service imports it. It imports no single backend.
"""
