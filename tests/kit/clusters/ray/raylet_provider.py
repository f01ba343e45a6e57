"""A provider of nodes for Ray's autoscaler: a new machine is a raylet of this machine with its own loopback address.

Ray's autoscaler imports `Provider`, so this file uses only what its own environment has. `ElasticRaylets` copies the
file into the cluster's folder, and steers it by the file `steer.json` there. As a cloud would, it keeps its machines
over the end of the autoscaler: `machines.json` has their tags, and each one boots in a process of its own.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_NAME,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

HEAD_TYPE = "head"
_CATEGORY = "INSUFFICIENT_CAPACITY"
_FIRST = 101
"""The number of the first new machine's address."""
_MARK = "is_up"
"""The file in a machine's folder that says that Ray runs there, or that nothing more is done to start it."""
_UP = {TAG_RAY_NODE_STATUS: "up-to-date"}


class Provider(NodeProvider):  # type: ignore[misc]
    """The machines by address. The head is the first one.

    `config` has the head's address, the cluster's folder and network, and by node type the command that starts a
    node. The command has ADDRESS and FOLDER where the node's own go.
    """

    def __init__(self, config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(config, cluster_name)
        self._lock = threading.RLock()
        self._folder = Path(config["folder"])
        self._machines = self._folder / "machines.json"
        head = config["head"]
        tags = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD_TYPE}
        self._tags: dict[str, dict[str, str]] = {head: {**tags, TAG_RAY_NODE_NAME: head, **_UP}}
        if self._machines.exists():
            self._tags = json.loads(self._machines.read_text())

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._lock:
            return [name for name in self._tags if tag_filters.items() <= self.node_tags(name).items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        is_up = (self._folder / node_id / _MARK).exists()
        return {**self._tags.get(node_id, {}), **(_UP if is_up else {})}

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        with self._lock:
            self._tags[node_id].update(tags)
            self._keep()

    def internal_ip(self, node_id: str) -> str:
        return node_id

    external_ip = internal_ip

    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> None:
        self.create_node(node_config, tags, count)

    def create_node(self, node_config: Any, tags: dict[str, str], count: int) -> None:
        steer = json.loads((self._folder / "steer.json").read_text())
        node_type = tags[TAG_RAY_USER_NODE_TYPE]
        self._note("fail" if steer.get("fail") else "launch", node_type, count)
        if steer.get("fail"):
            raise NodeLaunchException(_CATEGORY, steer["fail"], None)
        for _ in range(count):
            with self._lock:
                network = self.provider_config["network"]
                address = f"{network}.{_FIRST + len(list(self._folder.glob(f'{network}.*')))}"
                folder = self._folder / address
                folder.mkdir()
                self._tags[address] = {**tags, TAG_RAY_NODE_NAME: address, TAG_RAY_NODE_STATUS: "setting-up"}
                self._keep()
            if steer.get("lacks_ray"):
                (folder / _MARK).touch()
            else:
                self._boot(folder, node_type, steer.get("delay_s", 0))

    def terminate_node(self, node_id: str) -> None:
        # Ray's second autoscaler takes a head that comes back slowly for a node to end. KubeRay ends no head either.
        if node_id == self.provider_config["head"]:
            return
        with self._lock:
            tags = self._tags.pop(node_id, None)
            self._keep()
        if tags is not None:
            self._note("terminate", tags[TAG_RAY_USER_NODE_TYPE], 1)
            threading.Thread(target=_end, args=[self._folder / node_id], daemon=True).start()

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        return cluster_config

    def _note(self, what: str, node_type: str, count: int) -> None:
        with open(self._folder / "launches.jsonl", "a") as log:
            print(json.dumps([time.time(), what, node_type, count]), file=log)

    def _keep(self) -> None:
        written = self._machines.with_suffix(".new")
        written.write_text(json.dumps(self._tags))
        written.replace(self._machines)

    def _boot(self, folder: Path, node_type: str, delay_s: float) -> None:
        """Start what the machine's init would do. `ray start` gives up after 30 s, and is then run again."""
        places = {"ADDRESS": folder.name, "FOLDER": str(folder)}
        command = list(self.provider_config["commands"][node_type])
        for place, value in places.items():
            command = [word.replace(place, value) for word in command]
        program = f"sleep {delay_s}; until {shlex.join(command)}; do sleep 1; done; touch {_MARK}"
        paths = [str(self._folder / "stub"), *filter(None, [os.environ.get("PYTHONPATH")])]  # see `Raylets`
        own = {
            "RAY_CLOUD_INSTANCE_ID": folder.name,
            "RAY_NODE_TYPE_NAME": node_type,
            "PYTHONPATH": os.pathsep.join(paths),
        }
        with open(folder / "start.log", "ab") as log:
            subprocess.Popen(
                ["sh", "-c", program],
                env={**os.environ, **own},
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )


def _end(folder: Path) -> None:
    """End the processes that work in the folder, as the end of a machine would: agents and kernels included."""
    while processes := [each for each in psutil.process_iter() if _works_in(each, folder)]:
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.1)


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        cwd = Path(process.cwd())
    except (psutil.Error, OSError):
        return False
    return cwd == folder or folder in cwd.parents
