"""The code that runs inside Dask's scheduler, workers and nannies. roost sends this code pickled by value.

    DaskManager ══ Dask's RPC ══> RoostSchedulerPlugin ──> SlotLedger: grants, refuses  scheduler_plugin, slot_ledger
                                     ^ │   └──> sweep: leases that no agent has noted   sweep
           resources, free amounts,  │ ├──> RoostWorkerPlugin: holds resources back     worker_plugin
           the agent, its problems ──┘ └──> AgentStarter ──> the agent                  nanny_plugin

An `AgentStarter` is in each nanny (`RoostNannyPlugin`), and in each worker that has no nanny. These files import no
other file of the backend. `node_archive.py` and `tasks.py` are sent along, and nothing else of roost.
"""
