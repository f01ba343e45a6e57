"""The classes of the three systems, old and new, and the backend of roost that takes the place of each."""

from __future__ import annotations

import re
from typing import Any, Literal

Kind = Literal[
    "local", "distributed", "yarn", "kubernetes", "custom-resource", "spark-operator", "docker", "docker-swarm",
    "conductor",
]  # fmt: skip
"""How a system starts a kernel."""

PROCESS_PROXIES: dict[str, Kind] = {
    "LocalProcessProxy": "local",
    "DistributedProcessProxy": "distributed",
    "YarnClusterProcessProxy": "yarn",
    "KubernetesProcessProxy": "kubernetes",
    "CustomResourceProcessProxy": "custom-resource",
    "SparkOperatorProcessProxy": "spark-operator",
    "DockerProcessProxy": "docker",
    "DockerSwarmProcessProxy": "docker-swarm",
    "ConductorClusterProcessProxy": "conductor",
}
"""The process proxies of Enterprise Gateway by the last part of `class_name`. Their modules have moved."""
PROVISIONERS: dict[str, Kind] = {
    "local-provisioner": "local",
    "distributed-provisioner": "distributed",
    "yarn-provisioner": "yarn",
    "kubernetes-provisioner": "kubernetes",
    "custom-resource-provisioner": "custom-resource",
    "spark-operator-provisioner": "spark-operator",
    "docker-provisioner": "docker",
    "docker-swarm-provisioner": "docker-swarm",
}
"""The provisioners of Gateway Provisioners and of Remote Provisioners, by name."""
BACKENDS: dict[Kind, str] = {
    "local": "local",
    "distributed": "local",
    "yarn": "yarn",
    "kubernetes": "kubernetes",
    "docker": "docker",
    "docker-swarm": "docker",
}
"""roost's backend of each kind that it can take over. `distributed` with other hosts than this one is `ssh`."""
REFUSALS: dict[Kind, str] = {
    "custom-resource": "Its class makes a custom resource of Kubernetes, and roost makes pods only: "
    "write a kernelspec for the backend kubernetes.",
    "spark-operator": "The Spark operator would own the driver's pod, which roost must lease: "
    "use a Spark kernel in client mode on the backend kubernetes.",
    "conductor": "IBM Spectrum Conductor is a proprietary cluster, and roost has no backend for it: "
    "use Spark on YARN or Kubernetes.",
}
"""Why roost refuses a kind, in one sentence."""
_THEIR_MODULES = re.compile(r"(jupyter_)?(enterprise_gateway|kernel_gateway)\w*\.")
_GUESSES: tuple[tuple[str, Kind], ...] = (
    ("kube|k8s|pod", "kubernetes"),
    ("yarn|hadoop", "yarn"),
    ("docker|swarm|podman|container", "docker"),
    ("ssh|distributed|remote|host", "distributed"),
)


def is_their_module(class_name: str) -> bool:
    """True if a class is in a package of Enterprise Gateway's, or is named without a package."""
    return "." not in class_name or bool(_THEIR_MODULES.match(class_name))


def find_class(class_name: str) -> Kind | None:
    """Return the kind of a process proxy by its class; None for a class that is not theirs."""
    return PROCESS_PROXIES.get(class_name.rpartition(".")[2])


def guess_kind(name: str, config: dict[str, Any]) -> Kind:
    """Return the most probable kind of an unknown class, by the words in its name and the keys of its options."""
    for pattern, kind in _GUESSES:
        if re.search(pattern, name, re.IGNORECASE):
            return kind
    if "image_name" in config:
        return "kubernetes"
    return "yarn" if "yarn_endpoint" in config else "distributed" if "remote_hosts" in config else "local"
