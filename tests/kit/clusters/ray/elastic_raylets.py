"""A Ray cluster that grows: a head with Ray's own autoscaler, whose new machines are raylets of this machine."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roost.testing.clusters.cluster_folder import end, tail
from roost.testing.clusters.free_ports import free_port
from roost.testing.clusters.raylets import PROGRAM, Machine, Raylets

from . import raylet_provider
from .raylet_provider import HEAD_TYPE

_UPDATE_S = 1
"""How long Ray's autoscaler waits between two looks at the cluster. Ray's default is 5 s."""
_SILENT_S = 10
"""After which silence of a node the first autoscaler ends its machine. Ray's default is 30 s."""
_JOIN_S = 90
"""After which time without Ray the second autoscaler ends a new machine. Ray's default is an hour."""
_NOISE = "Dropping the empty legacy field"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A line of the provider's log. `what` is `launch`, `fail` or `terminate`."""

    at: float
    what: str
    node_type: str
    count: int


class ElasticRaylets(Raylets):
    """A head and, by name, the types of nodes that its autoscaler may start, each with the machine and its limit.

    `is_second` chooses Ray's second autoscaler. A node without work ends after `idle_s`. With `keeps_state` groups and
    actors outlive the head, and so do the machines of its autoscaler.
    """

    def __init__(
        self,
        head: Machine,
        types: Mapping[str, tuple[Machine, int]],
        *,
        is_second: bool,
        idle_s: float = 8.0,
        keeps_state: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(head, keeps_state=keeps_state, environment=environment)
        self._types = types
        self._is_second = is_second
        self._idle_s = idle_s

    def steer(self, **values: Any) -> None:
        """Set how the next machines start: `fail` is the reason why none can, `delay_s` makes them slow.

        With `lacks_ray`, Ray does not start there.
        """
        target = self.folder / "steer.json"
        written = target.with_suffix(".new")
        written.write_text(json.dumps(values))
        written.replace(target)

    def kill_head(self) -> None:
        """Kill all that runs on the head: the GCS, the autoscaler, the raylet and its workers."""
        end(self.nodes[0].folder)

    def restart_head(self) -> None:
        """Start the head again, at the same address."""
        self.start_again(self.nodes[0].address)

    def launches(self) -> list[Launch]:
        """Return what the autoscaler has asked of the provider."""
        log = self.folder / "launches.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [
            Launch(at=at, what=what, node_type=node_type, count=count)
            for at, what, node_type, count in map(json.loads, lines)
        ]

    def describe_growth(self) -> str:
        """Return what the autoscaler has done, and the ends of its logs and of those of its nodes."""
        lines = [str(launch) for launch in self.launches()]
        for log in self.folder.glob("*/session_latest/logs/monitor.log"):
            told = [line for line in log.read_text(errors="replace").splitlines() if _NOISE not in line]
            lines += [f"{log}:", *told[-60:]]
        for log in (*self.folder.glob("*/start.log"), *self.folder.glob("*/session_2*/logs/raylet.out")):
            lines += [f"{log}:", tail(log)]
        return "\n".join(lines)

    def _start(self) -> None:
        head = f"{self._network}.2"
        self.address = f"{head}:{free_port()}"
        self.steer()
        module = self.folder / "provider" / Path(raylet_provider.__file__).name
        module.parent.mkdir()
        shutil.copy(raylet_provider.__file__, module)
        (self.folder / "autoscaling.json").write_text(json.dumps(self._describe(head, module.stem)))
        super()._start()

    def _describe(self, head: str, module: str) -> dict[str, Any]:
        """Return the autoscaler's configuration, as `ray up` would write it."""
        commands = {
            name: [
                sys.executable,
                "-c",
                PROGRAM,
                "start",
                *self._options(machine, "ADDRESS", Path("FOLDER"), False),
            ]
            for name, (machine, _) in self._types.items()
        }
        provider = {
            "type": "external",
            "module": f"{module}.Provider",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "folder": str(self.folder),
            "network": self._network,
            "head": head,
            "commands": commands,
        }
        types: dict[str, Any] = {
            HEAD_TYPE: {"resources": {}, "node_config": {}, "max_workers": 0},
            **{
                name: {
                    "resources": _to_ray(machine),
                    "labels": _to_labels(machine),
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": limit,
                }
                for name, (machine, limit) in self._types.items()
            },
        }
        lists = (
            "initialization",
            "setup",
            "head_setup",
            "worker_setup",
            "head_start_ray",
            "worker_start_ray",
        )
        return {
            "cluster_name": "elastic",
            "max_workers": sum(limit for _, limit in self._types.values()),
            "idle_timeout_minutes": self._idle_s / 60,
            "upscaling_speed": 1.0,
            "provider": provider,
            "available_node_types": types,
            "head_node_type": HEAD_TYPE,
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{f"{name}_commands": [] for name in lists},
            **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
            "file_mounts_sync_continuously": False,
        }

    def _options(self, machine: Machine, address: str, folder: Path, is_head: bool) -> list[str]:
        options = super()._options(machine, address, folder, is_head)
        if is_head:
            options.remove("--no-monitor")
            options.append(f"--autoscaling-config={self.folder / 'autoscaling.json'}")
        return options

    def _environment_of(self, machine: Machine) -> dict[str, str]:
        own = super()._environment_of(machine)
        own |= {
            "AUTOSCALER_UPDATE_INTERVAL_S": str(_UPDATE_S),
            "AUTOSCALER_HEARTBEAT_TIMEOUT_S": str(_SILENT_S),
            "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": str(_JOIN_S),
            "RAY_CLOUD_INSTANCE_ID": f"{self._network}.2",
            "RAY_NODE_TYPE_NAME": HEAD_TYPE,
            "PYTHONPATH": os.pathsep.join([own["PYTHONPATH"], str(self.folder / "provider")]),
        }
        return own | ({"RAY_enable_autoscaler_v2": "1"} if self._is_second else {})


def _to_ray(machine: Machine) -> dict[str, float]:
    amounts = {"CPU": machine.cpus, "GPU": machine.gpus, "memory": machine.memory_bytes, **machine.resources}
    if machine.gpu_model:
        amounts[f"accelerator_type:{machine.gpu_model}"] = 1
    return {name: amount for name, amount in amounts.items() if amount}


def _to_labels(machine: Machine) -> dict[str, str]:
    model = {"ray.io/accelerator-type": machine.gpu_model} if machine.gpu_model else {}
    return {**machine.labels, **model}
