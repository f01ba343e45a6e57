"""A Kubernetes cluster of real kubelets on this machine. Each node is a set of namespaces.

    with Kubelets(Machine(gpus=2, gpu_model="Tesla-T4", gpu_memory_mib=15360), Machine()) as cluster:
        cluster.api.call("GET", "/api/v1/nodes")

A cluster takes 7 s to start, and then at most 1.3 GiB and a tenth of a CPU. Linux's usual limit of inotify
(`fs.inotify.max_user_instances`, 128) is enough for five clusters at a time.

One program, compiled from Kubernetes' own modules, holds etcd and all parts of Kubernetes. Debian brings containerd
and runc. No registry, systemd or Docker is needed. `python -m kit.clusters.kubelets` builds, starts and ends clusters
by hand.
"""

from .api import Api, Refused
from .build import why_not
from .cluster import Kubelets, leftovers
from .image import PYTHON
from .node import GPUS, Machine

MACHINES = (
    Machine(cpus=4, gpus=2, gpu_model="Tesla-T4", gpu_memory_mib=15360),
    Machine(cpus=2, gpus=2, gpu_model="NVIDIA-A100-SXM4-40GB", gpu_memory_mib=40960),
    Machine(cpus=2, labels={"zone": "b"}),
)
"""The nodes of the shared cluster, and of `python -m kit.clusters.kubelets up`. All have 8 GiB. No GPU is real."""

__all__ = ["GPUS", "MACHINES", "PYTHON", "Api", "Kubelets", "Machine", "Refused", "leftovers", "why_not"]
