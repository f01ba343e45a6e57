"""Applications of other users: Hadoop's distributed shell, which runs a command in a few containers."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .build import jars
from .cluster import java_command, java_environment
from .settings import GPU, Settings

_MAIN = "org.apache.hadoop.yarn.applications.distributedshell.Client"


def shell_settings() -> Settings:
    """Return the settings of a cluster on which the distributed shell runs."""
    return {"yarn.application.classpath": f"$HADOOP_CONF_DIR,{jars()}/*"}


def start_shell(
    configuration: Path, folder: Path, command: str, *, containers: int, gpus: int, queue: str
) -> subprocess.Popen[bytes]:
    """Start a client that runs a command in containers with this number of GPUs each. Return the client.

    The client ends after the application. Its exit status is 0 if that of all containers was 0.

    The application keeps its files in `folder`, and the client's log is `shell.log` there.
    """
    (jar,) = jars().glob("hadoop-yarn-applications-distributedshell-*.jar")
    amounts = f"memory-mb=128,vcores=1,{GPU}={gpus}"
    options = {
        "jar": jar, "appname": "others", "queue": queue, "master_memory": 256, "num_containers": containers,
        "container_resources": amounts, "shell_command": command,
    }  # fmt: skip
    flat = [str(word) for name, value in options.items() for word in (f"-{name}", value)]
    with open(folder / "shell.log", "ab") as log:
        return subprocess.Popen(
            [*java_command(configuration, "-Xmx96m", f"-Duser.home={folder}"), _MAIN, *flat],
            env=java_environment(configuration.parents[1], configuration, {}),  # it ends with the cluster
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
