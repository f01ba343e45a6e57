"""The control plane: etcd, API server, controllers and scheduler in namespaces of their own."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .build import program
from .credentials import ADMINISTRATORS, Authority, write_key
from .namespaces import Namespaces
from .network import Network

PORT = 443  # as the service in the cluster has it, which needs no kube-proxy then
_ETCD = "http://127.0.0.1:2379"
_SHORT_GRACE = ("--node-monitor-grace-period=8s", "--node-monitor-period=1s")  # so that faults show soon
_QUICK = ("--kube-api-qps=500", "--kube-api-burst=500")  # else 30 requests, and then 20 a second


class ControlPlane:
    """The parts `etcd`, `apiserver`, `controllers` and `scheduler`. Its files are in `folder`."""

    def __init__(self, folder: Path, namespaces: Namespaces, network: Network) -> None:
        self.namespaces = namespaces
        self.server = f"https://{network.control_plane}:{PORT}"
        self._folder, self._network = folder, network
        authority = self.authority = Authority(folder)
        write_key(folder / "accounts.key")
        addresses = (network.control_plane, network.api_service, "127.0.0.1")
        authority.issue(folder / "apiserver", "apiserver", addresses=addresses)
        authority.issue(folder / "kubelet-client", "apiserver-to-kubelets", [ADMINISTRATORS])
        for name in ("controllers", "scheduler"):
            user = {"controllers": "system:kube-controller-manager", "scheduler": "system:kube-scheduler"}[
                name
            ]
            authority.write_kubeconfig(folder / f"{name}.kubeconfig", self.server, user)

    def set_up(self) -> None:
        script = "mount --make-rprivate /\nmount -t proc proc /proc\n" + self._network.router_script()
        self.namespaces.run(script, self._folder / "setup.log")

    def start(self, part: str) -> subprocess.Popen[bytes]:
        command = [str(program()), part, *getattr(self, f"_{part}")()]
        return self.namespaces.start(command, self._folder / f"{part}.log")

    def _etcd(self) -> list[str]:
        peers = "http://127.0.0.1:2380"
        return [
            f"--data-dir={self._folder}/etcd", "--unsafe-no-fsync", "--log-level=warn",
            f"--listen-peer-urls={peers}", f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        ]  # fmt: skip

    def _apiserver(self) -> list[str]:
        files, accounts = self._folder, f"{self._folder}/accounts.key"
        return [
            f"--etcd-servers={_ETCD}", f"--secure-port={PORT}", f"--advertise-address={self._network.control_plane}",
            f"--service-cluster-ip-range={self._network.services}", "--allow-privileged",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={files}/ca.crt",
            f"--tls-cert-file={files}/apiserver.crt", f"--tls-private-key-file={files}/apiserver.key",
            f"--kubelet-client-certificate={files}/kubelet-client.crt",
            f"--kubelet-client-key={files}/kubelet-client.key", "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={accounts}", f"--service-account-key-file={accounts}",
        ]  # fmt: skip

    def _controllers(self) -> list[str]:
        return [
            f"--kubeconfig={self._folder}/controllers.kubeconfig", "--leader-elect=false", *_QUICK,
            *_SHORT_GRACE,
            "--use-service-account-credentials", f"--service-account-private-key-file={self._folder}/accounts.key",
            f"--root-ca-file={self._folder}/ca.crt", f"--flex-volume-plugin-dir={self._folder}/volume-plugins",
        ]  # fmt: skip

    def _scheduler(self) -> list[str]:
        return [f"--kubeconfig={self._folder}/scheduler.kubeconfig", "--leader-elect=false"]
