"""The Kubernetes cluster of the tour: three nodes of real kubelets on this machine, and a namespace for its kernels."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))

NAMESPACE = "tour"
QUOTA_CPUS = 3
USER = 12345
_OBJECTS = {
    "/api/v1/namespaces": {
        "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    },
    f"/api/v1/namespaces/{NAMESPACE}/resourcequotas": {
        "metadata": {"name": "team"},
        "spec": {"hard": {"requests.cpu": str(QUOTA_CPUS), "pods": "20"}},
    },
    f"/api/v1/namespaces/{NAMESPACE}/limitranges": {
        "metadata": {"name": "defaults"},
        "spec": {"limits": [{"type": "Container", "defaultRequest": {"cpu": "100m", "memory": "64Mi"}}]},
    },
}


def why_not() -> str | None:
    """Return why no cluster can start here, in one sentence, or None."""
    missing = [
        name for name in ("cryptography", "kubernetes", "urllib3") if importlib.util.find_spec(name) is None
    ]
    if missing:
        return f"Python packages are missing: pip install {' '.join(missing)}"
    from kit.clusters.kubelets import why_not as why_no_kubelets

    return why_no_kubelets()


class KubeletsCluster:
    """A cluster of `tests/kit/clusters/kubelets` with the tour's namespace. `address` is its kubeconfig file."""

    def __init__(self) -> None:
        from kit.clusters.kubelets import MACHINES, Kubelets

        self.machines = MACHINES
        self._kubelets = Kubelets(*MACHINES)
        self._is_up = False

    @property
    def folder(self) -> Path:
        return self._kubelets.folder

    @property
    def address(self) -> str:
        return str(self._kubelets.kubeconfig)

    def __enter__(self) -> KubeletsCluster:
        self._kubelets.__enter__()
        self._is_up = True
        for path, content in _OBJECTS.items():
            self._kubelets.api.call("POST", path, content)
        return self

    def close(self) -> None:
        """End the cluster with all of its processes, mounts and networks. May be repeated."""
        if self._is_up:
            self._is_up = False
            self._kubelets.__exit__()

    def settings(self, folder: Path) -> dict[str, Any]:
        """Return roost's settings for this cluster. The pod template and the service's keys are files in `folder`."""
        from kit.clusters.kubelets import PYTHON

        template = folder / "pod.yaml"
        template.write_text(f"spec: {{securityContext: {{runAsUser: {USER}}}}}\n")
        return {
            "address": self.address,
            "namespace": NAMESPACE,
            "image": PYTHON,
            "pod_template": str(template),
            "identity_file": str(folder / "keys" / "identity.json"),
            "read_all_pods": True,
        }

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the cluster, those in pods too."""
        from kit.clusters.kubelets.keeper import MARK

        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder):
                    found.append(process)
            except (psutil.Error, OSError):  # ended, a zombie, or another user's
                continue
        return found + self.kernel_processes()

    def kernel_processes(self) -> list[psutil.Process]:
        """Return the processes in the tour's pods."""
        pods = self._kubelets.api.call("GET", f"/api/v1/namespaces/{NAMESPACE}/pods")["items"]
        found = []
        for pid in [pid for pod in pods for pid in self._kubelets.pids(pod["metadata"]["uid"])]:
            try:
                found.append(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
        return found

    def leftovers(self) -> list[str]:
        """Return the cluster's remains after its end: folders, cgroups, network devices, mounts, processes."""
        from kit.clusters.kubelets import leftovers

        return leftovers(self.folder)


ASK = f"""
import json, sys, time
from kubernetes import client, config
config.load_kube_config(sys.argv[1])
api = client.CoreV1Api()
end = time.monotonic() + 20
while True:
    left = [f"{{kind}} {{one.metadata.name}}"
            for kind, list_all in (("pod", api.list_namespaced_pod), ("Secret", api.list_namespaced_secret))
            for one in list_all({NAMESPACE!r}).items]
    if not left or time.monotonic() > end:
        break
    time.sleep(0.2)
print(json.dumps(left))
"""
"""A program that prints the pods and Secrets that are left. A pod is gone some seconds after its deletion."""
