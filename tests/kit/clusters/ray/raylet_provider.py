"""A provider of nodes for Ray's autoscaler: a new machine is a raylet of this machine with its own loopback address.

Ray's autoscaler imports `Provider`, so this file uses only what its own environment has. `ElasticRaylets` copies the
file into the cluster's folder, and steers it by the file `steer.json` there.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
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
        self._count = 100
        head = config["head"]
        tags = {TAG_RAY_NODE_KIND: NODE_KIND_HEAD, TAG_RAY_USER_NODE_TYPE: HEAD_TYPE}
        self._tags: dict[str, dict[str, str]] = {head: {**tags, TAG_RAY_NODE_NAME: head, **_UP}}

    def non_terminated_nodes(self, tag_filters: dict[str, str]) -> list[str]:
        with self._lock:
            return [name for name, tags in self._tags.items() if tag_filters.items() <= tags.items()]

    def is_running(self, node_id: str) -> bool:
        return node_id in self._tags

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._tags

    def node_tags(self, node_id: str) -> dict[str, str]:
        return self._tags.get(node_id, {})

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self._tags[node_id].update(tags)

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
                self._count += 1
                address = f"{self.provider_config['network']}.{self._count}"
                self._tags[address] = {**tags, TAG_RAY_NODE_NAME: address, TAG_RAY_NODE_STATUS: "setting-up"}
            if steer.get("lacks_ray"):
                self.set_node_tags(address, _UP)
                continue
            arguments = address, node_type, steer.get("delay_s", 0)
            threading.Thread(target=self._boot, args=arguments, daemon=True).start()

    def terminate_node(self, node_id: str) -> None:
        with self._lock:
            tags = self._tags.pop(node_id, None)
        if tags is not None:
            self._note("terminate", tags[TAG_RAY_USER_NODE_TYPE], 1)
            threading.Thread(target=_end, args=[self._folder / node_id], daemon=True).start()

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        return cluster_config

    def _note(self, what: str, node_type: str, count: int) -> None:
        with open(self._folder / "launches.jsonl", "a") as log:
            print(json.dumps([time.time(), what, node_type, count]), file=log)

    def _boot(self, address: str, node_type: str, delay_s: float) -> None:
        time.sleep(delay_s)
        folder = self._folder / address
        folder.mkdir(exist_ok=True)
        places = {"ADDRESS": address, "FOLDER": str(folder)}
        command = list(self.provider_config["commands"][node_type])
        for place, value in places.items():
            command = [word.replace(place, value) for word in command]
        own = {"RAY_CLOUD_INSTANCE_ID": address, "RAY_NODE_TYPE_NAME": node_type}
        with open(folder / "start.log", "ab") as log:
            while address in self._tags:
                # `ray start` gives up after 30 s. A machine's init runs it again then.
                done = subprocess.run(
                    command, env={**os.environ, **own}, cwd=folder, stdout=log, stderr=log, check=False
                )
                with self._lock:
                    if done.returncode == 0 and address in self._tags:
                        self._tags[address].update(_UP)
                        return
                _end(folder)


def _end(folder: Path) -> None:
    """End the processes that work in the folder, as the end of a machine would: agents and kernels included."""
    for process in psutil.process_iter():
        try:
            cwd = Path(process.cwd())
            if cwd == folder or folder in cwd.parents:
                process.kill()
        except (psutil.Error, OSError):
            continue
