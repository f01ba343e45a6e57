"""Kernelspecs with the provisioner `roost`, which work even if roost's entry points are not installed."""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning import KernelProvisionerFactory

IPYKERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


def register() -> None:
    """Make `roost` known as a provisioner in this process."""
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["roost"] = EntryPoint(
        "roost", "roost.provisioners:RoostProvisioner", KernelProvisionerFactory.GROUP_NAME
    )


def kernelspecs(
    folder: Path,
    name: str = "roosted",
    *,
    backend: str = "",
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> KernelSpecManager:
    """Return a manager of kernelspecs with one spec in `folder`. `changes` replace fields of its kernel.json.

    With a `backend`, the kernels ask for 0.1 CPUs, so that the cluster shows the lease of a forgotten kernel.
    """
    register()
    config = {**({"backend": backend, "cpus": 0.1} if backend else {}), **(config or {})}
    spec = {
        "argv": IPYKERNEL,
        "display_name": name,
        "language": "python",
        "metadata": {
            "debugger": True,
            "supported_encryption": ["curve"],
            "kernel_provisioner": {"provisioner_name": "roost", "config": config},
        },
    }
    metadata = {**spec["metadata"], **changes.pop("metadata", {})}  # type: ignore[dict-item]
    home = folder / "kernels" / name
    home.mkdir(parents=True, exist_ok=True)
    (home / "kernel.json").write_text(json.dumps({**spec, **changes, "metadata": metadata}))
    return KernelSpecManager(kernel_dirs=[str(folder / "kernels")], ensure_native_kernel=False)
