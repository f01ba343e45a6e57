"""A node: containerd, a kubelet and a device plugin in namespaces of their own."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from roost.testing.deadlines import allow_s

from . import containerd
from .build import images, program
from .credentials import Authority
from .namespaces import Namespaces
from .network import Network, connect_node

GPUS = "nvidia.com/gpu"
START_TIMEOUT_S = 300.0
CGROUPS = Path("/sys/fs/cgroup")
_SYSCTLS = {
    "vm/overcommit_memory": 1,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
_NEVER_EVICTS = dict.fromkeys(
    ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available", "imagefs.inodesFree"),
    "0%",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The declared resources of one node. Kubernetes takes them for real; this machine may have less.

    `images` is a containerd root with the node's images, as `build.unpack` makes it. Empty: that of `build.images`.
    """

    cpus: int = 4
    memory_bytes: int = 8 << 30
    gpus: int = 0
    gpu_model: str = ""
    gpu_memory_mib: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    images: str = ""

    @property
    def all_labels(self) -> dict[str, str]:
        """The node's labels, with the labels that NVIDIA's feature discovery adds to a node with GPUs."""
        gpus = (
            {"count": self.gpus, "product": self.gpu_model, "memory": self.gpu_memory_mib}
            if self.gpus
            else {}
        )
        return {**{f"{GPUS}.{name}": str(value) for name, value in gpus.items()}, **self.labels}


class Node:
    """The parts `containerd`, `kubelet` and `gpus` of the node `n<index>`. Its files are in `folder`."""

    def __init__(self, folder: Path, index: int, machine: Machine, network: Network, cgroup: str) -> None:
        self.name = f"n{index}"
        self.parts = ("containerd", "kubelet", *(["gpus"] if machine.gpus else []))
        self._folder, self._index, self._machine, self._network = folder, index, machine, network
        self._cgroup = f"{cgroup}/{self.name}"
        self._images = Path(machine.images) if machine.images else images()
        self._namespaces: Namespaces | None = None

    @property
    def namespaces(self) -> Namespaces:
        assert self._namespaces is not None, f"{self.name} is off"
        return self._namespaces

    def clear(self) -> None:
        """Reap the process that held the node's namespaces, after all other processes."""
        self.namespaces.close()
        self._namespaces = None

    @property
    def _store(self) -> Path:
        return self._folder / "lib" / "containerd"

    @property
    def is_on(self) -> bool:
        return self._namespaces is not None

    def prepare(self, authority: Authority, server: str) -> None:
        """Write the node's files: settings, credentials and its own copy of the images."""
        # The kubelet counts folders of CPUs and reads meminfo. `set_up` mounts these over the real ones.
        cpus = [f"cpus/cpu{index}" for index in range(self._machine.cpus)]
        for name in ("lib/kubelet", "log", "networks", "numa", "sysctl", "tmp", *cpus):
            (self._folder / name).mkdir(parents=True)
        total = f"MemTotal: {self._machine.memory_bytes >> 10} kB"
        meminfo = re.sub("^MemTotal:.*", total, Path("/proc/meminfo").read_text(), flags=re.MULTILINE)
        (self._folder / "meminfo").write_text(meminfo)
        self._copy_store()
        for name, value in _SYSCTLS.items():
            (self._folder / "sysctl" / name.replace("/", ".")).write_text(f"{value}\n")
        kubeconfig = self._folder / "kubelet.kubeconfig"
        authority.write_kubeconfig(kubeconfig, server, f"system:node:{self.name}", ["system:nodes"])
        settings = containerd.settings(
            root="/var/lib/containerd", state="/run/containerd", networks=self._folder / "networks"
        )
        (self._folder / "containerd.toml").write_text(settings)
        (self._folder / "networks" / "10-bridge.conflist").write_text(json.dumps(self._bridge()))
        (self._folder / "kubelet.json").write_text(json.dumps(self._kubelet_settings(authority)))
        (self._folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")  # every lookup fails at once

    def set_up(self, environment: Mapping[str, str], control_plane: Namespaces) -> None:
        """Make the node's namespaces, and connect them to the bridge."""
        environment = {**environment, "TMPDIR": f"{self._folder}/tmp"}
        self._namespaces = Namespaces(environment)
        self._make_cgroups()
        connect_node(self._index, control_plane.pid, self._namespaces.pid)
        at, store, source = (shlex.quote(str(path)) for path in (self._folder, self._store, self._images))
        sysctls = "\n".join(  # kubelets set them for the whole machine; here they have their values already
            f"mount --bind {at}/sysctl/{name.replace('/', '.')} /proc/sys/{name}" for name in _SYSCTLS
        )
        layers = "\n".join(
            f"mount --bind {source}/{path} {store}/{path}\nmount -o remount,bind,ro {store}/{path}"
            for path in self._shared_folders()
        )
        script = f"""
            mount --make-rprivate /
            mount --make-rshared /
            mount -t proc proc /proc
            {layers}
            mount --rbind {at}/lib /var/lib
            mount --bind {at}/log /var/log
            mount --bind {at}/cpus /sys/devices/system/cpu
            mount --bind {at}/numa /sys/devices/system/node
            mount --bind {at}/meminfo /proc/meminfo
            mount -t tmpfs tmpfs /run
            mkdir /run/netns
            echo {self.name} > /proc/sys/kernel/hostname
            {sysctls}
        """
        self._namespaces.run(script + self._network.node_script(self._index), self._folder / "setup.log")
        control_plane.run(self._network.plug_script(self._index), self._folder / "setup.log")

    def start(self, part: str) -> subprocess.Popen[bytes]:
        """Start a part. Before a kubelet, wait until containerd listens; otherwise the kubelet ends."""
        if part == "kubelet":
            self._await_containerd()
        return self.namespaces.start(getattr(self, f"_{part}")(), self._folder / f"{part}.log")

    def _await_containerd(self) -> None:
        path = f"/proc/{self.namespaces.pid}/root/run/containerd/containerd.sock"
        deadline = time.monotonic() + allow_s(START_TIMEOUT_S)
        while True:
            with socket.socket(socket.AF_UNIX) as connection:
                try:
                    return connection.connect(path)
                except OSError:
                    if time.monotonic() > deadline:
                        raise
            time.sleep(0.05)

    def _make_cgroups(self) -> None:
        """Make the node's cgroup in each hierarchy, with all controllers, which a kubelet needs."""
        controllers = CGROUPS / "cgroup.controllers"
        if not controllers.exists():  # version 1
            for hierarchy in CGROUPS.iterdir():
                if hierarchy.is_dir() and not hierarchy.is_symlink() and hierarchy.name != "unified":
                    (hierarchy / self._cgroup).mkdir(parents=True, exist_ok=True)
            return
        own = CGROUPS / self._cgroup
        own.mkdir(parents=True, exist_ok=True)
        for group in (CGROUPS, own.parent):
            wanted = " ".join(f"+{name}" for name in controllers.read_text().split())
            (group / "cgroup.subtree_control").write_text(wanted)

    def _copy_store(self) -> None:
        """Copy the databases of the image store. The rest of the store is mounted, as it never changes."""
        for database in self._images.rglob("*.db"):
            copy = self._store / database.relative_to(self._images)
            copy.parent.mkdir(parents=True)
            shutil.copy(database, copy)
        for path in self._shared_folders():
            (self._store / path).mkdir(parents=True)

    def _shared_folders(self) -> list[Path]:
        """Return the folders of the store that all nodes share: the content, and each unpacked layer."""
        layers = (self._images / "io.containerd.snapshotter.v1.overlayfs" / "snapshots").iterdir()
        return [
            Path("io.containerd.content.v1.content"),
            *(layer.relative_to(self._images) for layer in layers),
        ]

    def _containerd(self) -> list[str]:
        return ["containerd", "--log-level", "warn", "--config", f"{self._folder}/containerd.toml"]

    def _kubelet(self) -> list[str]:
        labels = ",".join(f"{key}={value}" for key, value in self._machine.all_labels.items())
        return [
            str(program()), "kubelet", f"--config={self._folder}/kubelet.json",
            f"--kubeconfig={self._folder}/kubelet.kubeconfig", f"--hostname-override={self.name}",
            f"--node-ip={self._network.node(self._index)}", f"--node-labels={labels}",
        ]  # fmt: skip

    def _gpus(self) -> list[str]:
        ids = [f"GPU-{uuid.uuid5(uuid.NAMESPACE_DNS, f'{self.name}.{k}')}" for k in range(self._machine.gpus)]
        return [str(program()), "gpus", GPUS, *ids]

    def _bridge(self) -> dict[str, object]:
        addresses = {
            "type": "host-local",
            "dataDir": "/run/addresses",
            "ranges": [[{"subnet": self._network.pods(self._index)}]],
        }
        bridge = {"type": "bridge", "bridge": "pods", "isDefaultGateway": True, "ipam": addresses}
        return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}

    def _kubelet_settings(self, authority: Authority) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "x509": {"clientCAFile": str(authority.certificate)},
            },
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self._cgroup}",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "evictionHard": _NEVER_EVICTS,
            "failCgroupV1": False,
            "failSwapOn": False,
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "localStorageCapacityIsolation": False,
            "makeIPTablesUtilChains": False,
            "maxPods": 200,
            "nodeLeaseDurationSeconds": 4,
            "nodeStatusUpdateFrequency": "2s",
            "resolvConf": f"{self._folder}/resolv.conf",
            "volumePluginDir": f"{self._folder}/volume-plugins",
        }
