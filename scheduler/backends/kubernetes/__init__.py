"""Kernels in pods of a Kubernetes cluster: the pod is the lease, and roost's agent is its first process.

    AgentPerKernelBackend                                                             backend, settings
        │  ↑ changes
    KubernetesCluster ──→ PodCreator ──→ Api  creates, signs and deletes pods         cluster, creation, api
        │  ↑ changes ──── Reflector ───→ Api  list+watch of roost's pods, nodes, and  watch
        │                                     all pods if the operator allows it
        ├── pod_spec      lease, launch, template → the pod and its Secret
        │     ├── volumes       the volumes and mounts that a kernel asks for
        │     └── allow_lists   what the operator allows kernels to ask for
        ├── pod_state     the pod as the API shows it → lease state and one plain reason
        ├── pod_end       asks why a pod ends, once its agent has reported the end
        ├── quota         which quota has refused a pod
        └── nodes         the API's nodes and pods, with `metrics` → placement's nodes

    kubeconfig            the cluster that a kubeconfig file names, for clients

A claim creates the pod with affinity to the chosen node. Kubernetes' own scheduler decides. `names` has the labels and
annotations of pods, and `quantity` reads Kubernetes' amounts.
"""

from __future__ import annotations

from roost.scheduler.backends.spec import BackendSpec, RequestOption

SPEC = BackendSpec(
    name="kubernetes",
    settings="roost.scheduler.backends.kubernetes.settings:RoostKubernetesBackend",
    create="roost.scheduler.backends.kubernetes.backend:create",
    address_variable="KUBECONFIG",
    cluster="roost.scheduler.backends.kubernetes.kubeconfig:name_cluster",
    packages=("kubernetes",),
    separates_kernels=True,
    has_agent_per_kernel=True,
    check="roost.scheduler.backends.kubernetes.backend:check",
    request_options=(
        RequestOption(
            name="image",
            kind=str,
            help="the container image; it needs Python and ipykernel, or the command of the kernelspec",
            variable="KERNEL_IMAGE",
        ),
        RequestOption(
            name="namespace", kind=str, help="the namespace of the pod", variable="KERNEL_NAMESPACE"
        ),
        RequestOption(
            name="service_account",
            kind=str,
            help="the service account of the pod",
            variable="KERNEL_SERVICE_ACCOUNT_NAME",
        ),
        RequestOption(
            name="volumes",
            kind=str,
            help="claims with paths (data:/data,models:/models:ro), or a list of Kubernetes' volumes",
            variable="KERNEL_VOLUMES",
        ),
        RequestOption(
            name="volume_mounts",
            kind=str,
            help="the mounts of a list of volumes, as a list of Kubernetes' volume mounts",
            variable="KERNEL_VOLUME_MOUNTS",
        ),
        RequestOption(name="uid", kind=int, help="the user of the pod, as a number", variable="KERNEL_UID"),
        RequestOption(name="gid", kind=int, help="the group of the pod, as a number", variable="KERNEL_GID"),
    ),
)
