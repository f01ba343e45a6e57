"""Kernelspecs of Enterprise Gateway and Gateway Provisioners, as small as the tests of a migration need them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from jupyter_core import paths

PROXIES = "enterprise_gateway.services.processproxies"
HANDSHAKE = (
    "--RemoteProcessProxy.kernel-id", "{kernel_id}", "--RemoteProcessProxy.response-address", "{response_address}",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class JupyterFolders:
    """The folders of data that Jupyter searches: first `user`, then `environment`, then `system`."""

    user: Path
    environment: Path
    system: Path
    config: Path

    def list_files(self) -> dict[str, bytes | None]:
        """Return everything below all folders, with the content of files, to compare trees."""
        root = self.user.parent
        return {
            str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
            for path in sorted(root.rglob("*"))
        }


def separate_jupyter(root: Path, patch: pytest.MonkeyPatch) -> JupyterFolders:
    """Let this process's Jupyter search empty folders below `root` only."""
    folders = JupyterFolders(
        user=root / "home" / "share" / "jupyter",
        environment=root / "environment" / "share" / "jupyter",
        system=root / "system" / "share" / "jupyter",
        config=root / "home" / "config",
    )
    patch.setenv("JUPYTER_DATA_DIR", str(folders.user))
    patch.setenv("JUPYTER_CONFIG_DIR", str(folders.config))
    patch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    patch.delenv("JUPYTER_PATH", raising=False)
    patch.setattr(paths.site, "ENABLE_USER_SITE", False)
    patch.setattr(paths, "ENV_JUPYTER_PATH", [str(folders.environment)])
    patch.setattr(paths, "SYSTEM_JUPYTER_PATH", [str(folders.system)])
    patch.setattr(paths, "ENV_CONFIG_PATH", [str(root / "environment" / "etc" / "jupyter")])
    patch.setattr(paths, "SYSTEM_CONFIG_PATH", [str(root / "system" / "etc" / "jupyter")])
    return folders


def write_old(
    data: Path, name: str, class_name: str = "processproxy.LocalProcessProxy", **values: Any
) -> Path:
    """Write a kernelspec of Enterprise Gateway with a logo and a script below a folder of data. Return its folder.

    `values` replace keys of the document. `config` is that of the process proxy.
    """
    folder = data / "kernels" / name
    (folder / "scripts").mkdir(parents=True)
    proxy = {"class_name": f"{PROXIES}.{class_name}", "config": values.pop("config", {})}
    document = {
        "argv": ["python", f"{folder}/scripts/launch_ipykernel.py", *HANDSHAKE],
        "display_name": name,
        "language": "python",
        "metadata": {"process_proxy": proxy, "debugger": True},
        **values,
    }
    (folder / "kernel.json").write_text(json.dumps(document))
    (folder / "logo-64x64.png").write_bytes(b"png")
    (folder / "kernel.js").write_text("define(() => ({}));")
    (folder / "scripts" / "launch_ipykernel.py").write_text("# theirs\n")
    return folder
