"""Kernels on the nodes of a Ray cluster: the lease is a placement group, and a Ray actor starts the agent.

    AgentPerNodeBackend ──> RayManager, with threads, because Ray's functions block     manager, settings
                               ├── joins as a driver, after some checks                 join, checks
                               ├── reads the nodes twice a second: RayNode ──> Node     nodes
                               ├── claims: one detached placement group per kernel      placement_groups
                               ├── starts an agent by an actor on its node              agent_task
                               └── claims without a node, which Ray's autoscaler starts new_nodes
                                     ├── its kinds of nodes, and what it is starting    autoscaler
                                     ├── what Ray has created for them                  created_groups
                                     └── an actor that removes groups nobody wants      guard

Ray sends no events. Each change shows at the next reading.
"""

from __future__ import annotations

from roost.scheduler.backends.spec import BackendSpec, RequestOption

SPEC = BackendSpec(
    name="ray",
    settings="roost.scheduler.backends.ray.settings:RoostRayBackend",
    create="roost.scheduler.backends.ray.manager:create",
    address_variable="RAY_ADDRESS",
    cluster="roost.scheduler.backends.ray.checks:name_cluster",
    check="roost.scheduler.backends.ray.checks:check",
    packages=("ray",),
    request_options=(
        RequestOption(
            name="namespace",
            kind=str,
            help="RAY_NAMESPACE in the kernel: the Ray namespace that the notebook joins",
            variable="KERNEL_RAY_NAMESPACE",
        ),
    ),
)
