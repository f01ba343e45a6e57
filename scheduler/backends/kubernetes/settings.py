"""The settings of the backend `kubernetes`."""

from __future__ import annotations

from typing import Any

from traitlets import Bool, Float, Int, List, TraitError, Unicode, validate

from roost.scheduler.config.shared_sections import NodeTypeSettings

from .allow_lists import parse_range


class RoostKubernetesBackend(NodeTypeSettings):
    """`c.RoostKubernetesBackend`: the Kubernetes cluster, and what users may ask of their pods."""

    address = Unicode(
        "", help="A kubeconfig file; empty: KUBECONFIG, else ~/.kube/config, else the pod's service account."
    )
    context = Unicode("", help="The context in the kubeconfig file; empty: its current one.")
    namespace = Unicode("", help="The namespace of kernels; empty: that of the context or pod.")
    image = Unicode("", help="The image of kernels that name none.")
    python = Unicode("python3", help="The Python in the image that runs roost's agent.")
    pod_template = Unicode(
        "", help="A YAML file with a Pod. It is merged with roost's own, whose container is `kernel`."
    )
    priority_class = Unicode("", help="The PriorityClass of kernels.")
    gpu_resource = Unicode("nvidia.com/gpu", help="The name of the GPUs' resource.")
    limit_cpus = Bool(False, help="Limit CPUs to the request. Kernels then start up to three times slower.")
    autoscale = Bool(
        False, help="The cluster adds nodes: a kernel that no node can take gets a pod that waits for one."
    )
    read_all_pods = Bool(
        False,
        help="Read the pods of everybody, which makes free resources exact. For a team's one service: each service "
        "reads all pods of the cluster.",
    )
    allowed_images = List(Unicode(), ["*"], help="Patterns of the images that kernels may name (fnmatch).")
    allowed_namespaces = List(
        Unicode(), help="Patterns of the namespaces that kernels may name, besides `namespace` (fnmatch)."
    )
    allowed_service_accounts = List(Unicode(), help="Service accounts that kernels may name.")
    token_service_accounts = List(
        Unicode(),
        help="Patterns of the service accounts that kernels may name, and whose token their pods get (fnmatch). "
        "Spark makes its executors with it.",
    )
    allowed_volumes = List(
        Unicode(),
        help="Patterns of the volumes that kernels may mount (fnmatch): claims, 'nfs:HOST:/PATH', …",
    )
    allowed_uids = List(
        Unicode(), ["1-2147483647"], help="Users by number that kernels may run as: '1000', '1000-1999'."
    )
    allowed_gids = List(
        Unicode(), ["1-2147483647"], help="Groups by number that kernels may run as: '100', '1000-1999'."
    )
    report_address = Unicode(
        "auto",
        help="The IP address of this machine or pod where pods report their kernels, which saves up to a "
        "second for each start. auto: the address that reaches the API server, unless that is loopback. Empty: no "
        "reports.",
    )
    report_port = Int(
        8871, min=1, max=65_535, help="The port of `report_address`. If it is taken: any free one."
    )
    identity_file = Unicode(
        "",
        help="The service's key pair. A service without it cannot reach the kernels of an earlier one, so it must "
        "survive restarts. Empty: roost/kubernetes-identity.json in XDG_STATE_HOME.",
    )
    watch_timeout_s = Float(
        60.0, min=1.0, help="How long one watch lasts. A watch that fell silent is noticed within this time."
    )

    @validate("allowed_uids", "allowed_gids")
    def _check_ranges(self, proposal: Any) -> Any:
        for text in proposal["value"]:
            try:
                parse_range(text)
            except ValueError as problem:
                raise TraitError(f"{proposal['trait'].name}: {problem}") from None
        return proposal["value"]
