"""Kernels in containers of this machine's Docker engine: the lease is the container, whose first process is the agent.

    AgentPerKernelBackend                                                      backend, settings
        │  ↑ changes
    DockerCluster ──→ ContainerCreator ──→ Engine   creates containers         cluster, creation, engine
        │  ├──→ StartVolumes ────────────→ Engine   removes left secrets       start_volumes
        │  └── container_end ────────────→ Engine   asks why a container ends  container_end
        ├── PendingLeases ──→ ImagePulls → Engine   wait for their image            pending, pulls, credentials
        ├── container_spec    lease → the container that the engine makes, and its start archive
        │     ├── volumes     the volumes that a kernel asks for, and the operator's list
        │     └── mounts      the real folders of these volumes, as the engine mounts them
        └── container_state   the container as the engine shows it → its lease and address

The engine has no accounting, so its containers are the accounts: their labels have the leases, and a name that only one
container can have is the lock. `names` has labels and names, `images` asks for images, and
`merging` joins own changes to the engine's.
"""

from __future__ import annotations

from roost.scheduler.backends.spec import BackendSpec, RequestOption

SPEC = BackendSpec(
    name="docker",
    settings="roost.scheduler.backends.docker.settings:RoostDockerBackend",
    create="roost.scheduler.backends.docker.backend:create",
    address_variable="DOCKER_HOST",
    cluster="roost.scheduler.backends.docker.settings:name_cluster",
    packages=("docker",),
    separates_kernels=True,
    has_agent_per_kernel=True,
    request_options=(
        RequestOption(
            name="image",
            kind=str,
            help="the container image; it needs Python and ipykernel, or the command of the kernelspec",
            variable="KERNEL_IMAGE",
        ),
        RequestOption(
            name="volumes",
            kind=list,
            help="folders of the machine and volumes of the engine, with their places: /data/sets:/data:ro",
            variable="KERNEL_VOLUMES",
        ),
        RequestOption(
            name="shm_size",
            kind=str,
            help="the size of /dev/shm, which is part of the kernel's memory, as in 1GiB",
        ),
        RequestOption(
            name="cwd", kind=str, help="the folder in the container where the kernel starts: /data or ~/work"
        ),
    ),
)
