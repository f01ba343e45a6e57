"""Kernels in containers of a Hadoop YARN cluster: the container is the lease, and roost's agent is its first process.

    service ── REST ──→ ResourceManager ── starts ──→ master/ (one application for each service, queue and priority)
       ├─── roost's RPC ──→ master ── Hadoop RPC ──→ ResourceManager (asks), NodeManagers (starts and stops containers)
       └─── roost's RPC ──→ agent, the first process of each container

    AgentPerKernelBackend ──→ YarnCluster                                              backend, settings, cluster
        ├── ContainerCreator: the ask of a lease, and YARN's answer                    creation, asking, archives
        ├── Applications, MasterLine: the masters, submitted on demand                 applications, submission, packing
        ├── Held: a lease, its ask and its container                                   held, reasons
        ├── ContainerAgents: the agents, with keys that need no storage                container_agents, derived_keys
        ├── NodeReader, Queues: nodes for placement, and limits                        node_reader, nodes, queues
        └── Rest, and the settings of the ResourceManager                              rest, hadoop_conf

A claim asks for a container on the chosen node. YARN's own scheduler decides. The master reports what becomes of each
container.
"""

from __future__ import annotations

from roost.scheduler.backends.spec import BackendSpec, RequestOption

SPEC = BackendSpec(
    name="yarn",
    runs_as_its_user=True,
    settings="roost.scheduler.backends.yarn.settings:RoostYarnBackend",
    create="roost.scheduler.backends.yarn.backend:create",
    address_variable="HADOOP_CONF_DIR",
    cluster="roost.scheduler.backends.yarn.hadoop_conf:name_cluster",
    packages=("yarn_api_client",),
    has_agent_per_kernel=True,
    request_options=(
        RequestOption(name="queue", kind=str, help="the queue of the kernel", variable="KERNEL_QUEUE"),
        RequestOption(
            name="priority",
            kind=int,
            help="the priority of the kernel in its queue; a higher number goes first",
            variable="KERNEL_PRIORITY",
        ),
        RequestOption(
            name="label",
            kind=str,
            help="the node label (partition) where the kernel runs",
            variable="KERNEL_NODE_LABEL",
        ),
        RequestOption(
            name="python",
            kind=str,
            help="the Python on the nodes that runs roost's agent; it needs ipykernel",
            variable="KERNEL_PYTHON",
        ),
        RequestOption(
            name="archive",
            kind=str,
            help="an archive with the kernel's Python (venv-pack, conda-pack), which YARN copies to the node: "
            "webhdfs://namenode:9870/… or file:///…",
            variable="KERNEL_ARCHIVE",
        ),
    ),
)
