"""The settings of a node's containerd."""

from __future__ import annotations

from pathlib import Path

from .image import PAUSE

CNI_PLUGINS = Path("/usr/lib/cni")
_UNUSED = ("snapshotter.v1.aufs", "snapshotter.v1.btrfs", "snapshotter.v1.devmapper", "snapshotter.v1.zfs")


def settings(*, root: str | Path, state: str | Path, networks: str | Path) -> str:
    """Return containerd's configuration file. `networks` is the folder with the configuration of CNI."""
    unused = ", ".join(f'"io.containerd.{name}"' for name in _UNUSED)
    return f"""version = 2
root = "{root}"
state = "{state}"
disabled_plugins = [{unused}]
[plugins."io.containerd.internal.v1.opt"]
path = "{root}/opt"
[grpc]
address = "{state}/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
stream_server_address = "127.0.0.1"
restrict_oom_score_adj = true # else runc fails without CAP_SYS_RESOURCE
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI_PLUGINS}"
conf_dir = "{networks}"
"""
