"""Kernels on the workers' machines of a Dask cluster: the lease is an amount subtracted from a worker's resources.

    AgentPerNodeBackend ──> DaskManager                                                 manager, settings
                               ├── joins as a client, and brings roost's plugins        join, install
                               ├── reads the nodes: DaskNode ──> Node                   nodes
                               └── claims, releases ══> the plugin in Dask's scheduler  plugin/

The manager's question about changed nodes waits in that plugin until there are some.
"""

from __future__ import annotations

from roost.scheduler.backends.spec import BackendSpec

SPEC = BackendSpec(
    name="dask",
    settings="roost.scheduler.backends.dask.settings:RoostDaskBackend",
    create="roost.scheduler.backends.dask.manager:create",
    address_variable="DASK_SCHEDULER_ADDRESS",
    cluster="roost.scheduler.backends.dask.join:name_cluster",
    check="roost.scheduler.backends.dask.join:check",
    packages=("distributed",),
)
