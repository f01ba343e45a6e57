"""The 56 kernelspecs that Enterprise Gateway ships and Gateway Provisioners' commands generate, unchanged.

pip downloads both projects into a cache outside this repository. `generate` runs the commands.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from kit.jupyter.downloads import GATEWAY, PROVISIONERS, cache, download_gateway, keep, pip
from roost.testing.deadlines import allow_s

_LIBRARIES = ("pycryptodomex==3.23.0", "overrides==7.7.0")
"""Libraries that the commands import. This environment may lack them."""
_VERSIONS = "_".join(["kernelspecs", PROVISIONERS, GATEWAY, *_LIBRARIES]).replace("==", "-")
_TIMEOUT_S = 60.0
_OF_GATEWAY = (
    "etc/kernelspecs",
    "enterprise_gateway/itests/kernels",
    "enterprise_gateway/tests/resources/kernels",
)
PLAIN = "kernel_defaults_test"
"""A kernelspec of Enterprise Gateway's unit tests. It is one of plain Jupyter."""
_WITHOUT_R = "its command fails: it looks for the folder `r`, and the wheel has `R`"


@dataclass(frozen=True, slots=True)
class Command:
    """A command of Gateway Provisioners. `defect` says why it fails, or is empty."""

    name: str
    app: str
    options: str = ""
    defect: str = ""

    def run(self, data: Path) -> Path | None:
        """Generate the kernelspec below a folder of data. Return its folder, or None if the command fails."""
        words = [sys.executable, "-m", f"gateway_provisioners.cli.{self.app}_specapp", "install", "--user"]
        words += [f"--kernel-name={self.name}", "--log-level=ERROR", *self.options.split()]
        env = {**os.environ, "JUPYTER_DATA_DIR": str(data), "PYTHONPATH": str(_library())}
        done = subprocess.run(words, env=env, capture_output=True, timeout=allow_s(_TIMEOUT_S))
        return data / "kernels" / self.name if done.returncode == 0 else None


COMMANDS = (
    Command("docker_python", "docker"),
    Command(
        "docker_python_tf", "docker", "--tensorflow", "its command fails: `--tensorflow` asks for a value"
    ),
    Command("docker_r", "docker", "--language=R"),
    Command("docker_scala", "docker", "--language=Scala"),
    Command("k8s_python", "k8s"),
    Command("k8s_python_spark", "k8s", "--spark"),
    Command("k8s_python_spark_operator", "k8s", "--spark --crd"),
    Command("k8s_python_tf", "k8s", "--tensorflow"),
    Command("k8s_r", "k8s", "--language=R"),
    Command("k8s_r_spark", "k8s", "--language=R --spark"),
    Command("k8s_scala", "k8s", "--language=Scala"),
    Command("k8s_scala_spark", "k8s", "--language=Scala --spark"),
    Command("ssh_python", "ssh"),
    Command("ssh_python_spark", "ssh", "--spark --remote-hosts=node1 --remote-hosts=node2"),
    Command("ssh_r", "ssh", "--language=R", _WITHOUT_R),
    Command("ssh_r_spark", "ssh", "--language=R --spark", _WITHOUT_R),
    Command("ssh_scala", "ssh", "--language=Scala"),
    Command("ssh_scala_spark", "ssh", "--language=Scala --spark --remote-hosts=node1 --remote-hosts=node2"),
    Command("swarm_python", "docker", "--swarm"),
    Command("swarm_r", "docker", "--swarm --language=R"),
    Command("swarm_scala", "docker", "--swarm --language=Scala"),
    Command("yarn_dask_python", "yarn", "--dask"),
    Command("yarn_ep", "yarn", "--yarn-endpoint=http://manager:8088/ws/v1/cluster --authorized-users=ada"),
    Command("yarn_python", "yarn"),
    Command("yarn_r", "yarn", "--language=R", _WITHOUT_R),
    Command("yarn_scala", "yarn", "--language=Scala"),
    Command("yarn_spark_python", "yarn", "--spark"),
    Command("yarn_spark_r", "yarn", "--language=R --spark", _WITHOUT_R),
    Command("yarn_spark_scala", "yarn", "--language=Scala --spark"),
)


def why_not() -> str | None:
    """Download both projects, if they are not in the cache. Return why they are missing, in one sentence, or None."""
    return keep(_VERSIONS, _download)


def list_of_gateway() -> list[Path]:
    """Return the folders of Enterprise Gateway's kernelspecs, by name."""
    return sorted((cache() / _VERSIONS / "kernels").iterdir(), key=lambda folder: folder.name)


def generate(data: Path) -> list[Path]:
    """Run Gateway Provisioners' commands. Return the folders of the kernelspecs below a folder of data.

    Raises AssertionError if a command fails whose defect is not known, or one succeeds that has a defect.
    """
    with ThreadPoolExecutor(max_workers=2) as pool:
        folders = list(pool.map(lambda command: command.run(data), COMMANDS))
    for command, folder in zip(COMMANDS, folders, strict=True):
        assert bool(folder) != bool(command.defect), command
    return [folder for folder in folders if folder]


def _library() -> Path:
    return cache() / _VERSIONS / "library"


def _download(folder: Path) -> None:
    pip("install", "--no-deps", "--target", str(folder / "library"), PROVISIONERS, *_LIBRARIES)
    archives = folder / "archives"
    source = download_gateway(archives, _OF_GATEWAY)
    (folder / "kernels").mkdir()
    for part in _OF_GATEWAY:
        for kernelspec in (source / part).iterdir():
            shutil.move(kernelspec, folder / "kernels" / kernelspec.name)
    shutil.rmtree(archives)
