"""Writes provisioners/migration/shipped_files.txt: the digests of the files that old gateways ship, and of their lines.

`PYTHONPATH=tests .venv/bin/python -m kit.jupyter.shipped_files` does it. pip downloads the releases.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from kit.jupyter.downloads import pip
from roost.provisioners.migration import site_files

RELEASES = (
    "jupyter_enterprise_gateway==3.0.0",
    "jupyter_enterprise_gateway==3.2.3",
    "jupyter_enterprise_gateway==3.3.0",
    "gateway_provisioners==0.2.0",
    "gateway_provisioners==0.4.0",
    "gateway_provisioners==0.5.0",
)
"""The releases with kernelspecs, as far as the registry has them."""
NAMES = (
    "run.sh", "bootstrap-kernel.sh", "kernel-pod.yaml.j2", "sparkoperator.k8s.io-v1beta2.yaml.j2", "launch_IRkernel.R",
    "launch_custom_resource.py", "launch_docker.py", "launch_ipykernel.py", "launch_kubernetes.py",
    "server_listener.py",
)  # fmt: skip


def _read_releases(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file that counts."""
    for release in RELEASES:
        no_binary = ["--no-binary", "jupyter_enterprise_gateway"]  # its wheel has no kernelspecs
        pip("download", "--no-deps", "--dest", str(folder), *no_binary, release)
    for archive in folder.glob("*.tar.gz"):
        with tarfile.open(archive) as source:
            for member in source:
                if Path(member.name).name in NAMES and (file := source.extractfile(member)):
                    yield Path(member.name).name, file.read().decode()
    for archive in folder.glob("*.whl"):
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if Path(name).name in NAMES:
                    yield Path(name).name, wheel.read(name).decode()


def main() -> int:
    whole, lines = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    with tempfile.TemporaryDirectory(prefix="shipped-") as folder:
        for name, text in _read_releases(Path(folder)):
            *each, total = site_files.digest_lines(text)
            whole[name].add(total)
            lines[name].update(each)
    rows = [f"{name} {''.join(sorted(whole[name]))} {''.join(sorted(lines[name]))}" for name in sorted(lines)]
    site_files._SHIPPED.write_text("\n".join(rows) + "\n", encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
