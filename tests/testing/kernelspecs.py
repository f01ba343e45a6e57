"""Kernelspecs of ipykernels that roost starts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager

IPYKERNEL = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


def write_ipykernel_spec(
    folder: Path,
    name: str,
    *,
    backend: str = "",
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> KernelSpecManager:
    """Write a kernelspec to `folder`, and return a manager that knows no other. `config` has roost's options.

    `changes` replace fields of its kernel.json. With a `backend`, the kernels ask for 0.1 CPUs, so that the cluster
    shows the lease of a forgotten kernel.
    """
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
