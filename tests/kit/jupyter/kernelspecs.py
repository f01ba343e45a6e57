"""Kernelspecs with the provisioner `roost`, which work even if roost's entry points are not installed."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.provisioning import KernelProvisionerFactory

from roost.testing.kernelspecs import IPYKERNEL as IPYKERNEL
from roost.testing.kernelspecs import write_ipykernel_spec


def register() -> None:
    """Make `roost` known as a provisioner in this process."""
    factory = KernelProvisionerFactory.instance()
    factory.provisioners["roost"] = EntryPoint(
        "roost", "roost.provisioners:RoostProvisioner", KernelProvisionerFactory.GROUP_NAME
    )


def kernelspecs(folder: Path, name: str = "roosted", **spec: Any) -> KernelSpecManager:
    """Write a kernelspec as `write_ipykernel_spec` does, after `register`. Return its manager."""
    register()
    return write_ipykernel_spec(folder, name, **spec)


def search_one_folder(data: Path, patch: pytest.MonkeyPatch) -> Path:
    """Let Jupyter search only `data` and Python's own folder. Return the folder of the user's kernelspecs."""
    patch.setenv("JUPYTER_DATA_DIR", str(data))
    patch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    return data / "kernels"


def write_kernelspec(kernels: Path, name: str, argv: list[str], **values: Any) -> Path:
    """Write a kernelspec with a logo (without `metadata`, not roost's). Return its folder."""
    folder = kernels / name
    folder.mkdir(parents=True)
    document = {"argv": argv, "display_name": name, "language": "none", **values}
    (folder / "kernel.json").write_text(json.dumps(document))
    (folder / "logo-64x64.png").write_bytes(b"png")
    return folder


def read_kernelspec(folder: Path) -> dict[str, Any]:
    """Return the content of the kernel.json in a kernelspec's folder."""
    return dict(json.loads((folder / "kernel.json").read_text()))


def roost_metadata(**config: Any) -> dict[str, Any]:
    """Return the metadata of a kernelspec whose provisioner is roost, with this configuration."""
    return {"kernel_provisioner": {"provisioner_name": "roost", "config": config}}
