"""The leases on this node: the agent's ledger, and the watches over what can end them.

    Agent ──> LeaseLedger: the leases that it has granted, as files                       ledger
      │          ^
      ├──> MachineShare: each grant is a promise in the machine's book too                machine_share
      │          ^
      ├──> LeaseRules: how each lease ends, and when the agent leaves                     lease_rules
      │          ^
      │          └── lose_all ──┬── ManagerWatch: the cluster manager's daemons           manager_watch
      │                         └── watch_address: a daemon known by its address alone    address_watch
      └──> report_address: a pod's agent reports to the service where it listens          address_report

If the agent itself decides (backend `local`), the ledger refuses a slice that is taken, by its own kernels or by those
of others in the machine's book. Leases are lost when the node has left its
cluster, or when the manager has not answered for its grace.
"""
