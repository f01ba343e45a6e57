"""A YARN cluster of real daemons on this machine: a ResourceManager, and NodeManagers with addresses of their own.

    with HadoopNodes(Machine(gpus=2, gpu_model="T4"), Machine()) as cluster:
        cluster.rest.get("/ws/v1/cluster/nodes")

A cluster of three nodes takes 10 to 20 s to start, and then 0.8 GiB. Nothing needs root, HDFS or DNS. GPUs are a
countable resource, and none is real. `python -m kit.clusters.hadoop_nodes` builds and starts clusters by hand.
"""

from .build import jars, why_not
from .cluster import HadoopNodes, gpus_of
from .distributed_shell import shell_settings, start_shell
from .rest import Refused, Rest
from .settings import GPU, PARTITION, Machine

MACHINES = (
    Machine(vcores=4),
    Machine(vcores=4, gpus=2, gpu_model="T4"),
    Machine(vcores=8, gpus=4, gpu_model="A100", attributes={"zone": "b"}),
)
"""The nodes of the cluster that the tests share, and of `python -m kit.clusters.hadoop_nodes up`. All have 8 GiB."""

__all__ = [
    "GPU", "MACHINES", "PARTITION", "HadoopNodes", "Machine", "Refused", "Rest", "gpus_of", "jars", "shell_settings",
    "start_shell", "why_not",
]  # fmt: skip
