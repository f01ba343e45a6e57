"""The changes of a launch for this node: addresses, the environment of the node, and devices."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template

from roost.launchers.agent.limits.limits import Limits, NotEnforced
from roost.launchers.agent.machine.gpu_locks import GpuLocks
from roost.launchers.agent.machine.gpus import DeviceReader
from roost.launchers.agent.machine.nvml import list_gpus
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import FOLDER_OPTION, Launch, Lease
from roost.launchers.protocol.rpc import RemoteError
from roost.placement.model.visible_gpus import is_visible, list_visible_gpus, name_gpus, show_gpus


class LaunchChanges:
    """Prepares launches for this node: the limits of their leases, addresses, environment and devices.

    `has_devices`: the ledger chooses devices by the ids of NVML.
    """

    def __init__(
        self, settings: AgentSettings, limits: Limits, devices: DeviceReader, *, has_devices: bool
    ) -> None:
        self._settings = settings
        self._limits = limits
        self._devices = devices
        self._has_devices = has_devices
        self._gpu_locks = GpuLocks(settings.node)

    def close(self) -> None:
        self._gpu_locks.close()

    async def prepare(self, request: Launch, lease: Lease) -> tuple[Launch, tuple[str, ...]]:
        """Return the launch with the changes that `AgentSettings` lists, and its devices. Raises `RemoteError`."""
        try:
            self._limits.confine(lease)
        except NotEnforced as problem:
            raise RemoteError("not_enforced", str(problem)) from None
        device_ids = await self._choose_devices(lease)
        settings = self._settings
        connection, cwd, env = request.connection, request.cwd, dict(request.env)
        if settings.address and connection.transport == "tcp":
            connection = replace(connection, ip=settings.address)
        if settings.is_remote or request.is_of_another_user:
            cwd = next(filter(os.path.isdir, (cwd, os.path.expanduser("~"))), os.getcwd())
            own = build_node_environment()
            if request.is_of_another_user:  # its kernelspec's `env` may name variables of this user
                env = {name: Template(value).safe_substitute(own) for name, value in env.items()}
            env = {**own, **env}
        if folder := lease.request.options.get(FOLDER_OPTION):
            cwd, why_not = find_folder(str(folder))
            if why_not:
                raise RemoteError("bad_command", why_not)
        has_bus_ids = self._gpu_locks.is_held or (settings.gpu_visibility == "bus" and self._has_devices)
        if settings.gpu_visibility == "manager":
            env["CUDA_VISIBLE_DEVICES"] = ",".join(device_ids)
        if has_bus_ids:  # NVML numbers devices in PCI order, but CUDA's default order puts the fastest first
            self._check_visible(lease, list_visible_gpus(env))
            env = {**show_gpus(env, device_ids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return replace(request, connection=connection, cwd=cwd, env=env), device_ids

    def _check_visible(self, lease: Lease, visible: Sequence[str] | None) -> None:
        """Raise `RemoteError` if the kernel's variables name other GPUs than its lease has: those of a prologue."""
        if visible is None or visible == lease.request.visible_gpus or not lease.device_ids:
            return
        for device in self._devices.read():
            if device.id in lease.device_ids and not is_visible(device, visible):
                problem = f"its variables name the GPUs {name_gpus(visible)}, and its lease has another one"
                raise RemoteError("bad_command", f"{problem}: name them in its kernelspec's env")

    async def _choose_devices(self, lease: Lease) -> tuple[str, ...]:
        """Return the ids of the devices that a kernel in this lease may use. Raises `RemoteError`."""
        if self._settings.gpu_visibility != "locks" or not lease.request.gpus:
            return lease.device_ids
        visible, count = self._devices.read(), lease.request.gpu_count
        if not visible:
            visible = await list_gpus()
        if len(visible) <= count:  # the manager lets this process see its own alone
            return tuple(device.id for device in visible)
        return await self._gpu_locks.hold(visible, count)


def find_folder(folder: str) -> tuple[str, str]:
    """Return the path of a folder of this node, which may begin with `~/`, and why no kernel can start there."""
    path = os.path.expanduser(folder)
    if os.path.isdir(path):
        return path, ""
    return (
        path,
        f"there is no folder {path:.500} on that machine: make it, or change the option {FOLDER_OPTION}",
    )


def build_node_environment() -> dict[str, str]:
    """Return the agent's environment without roost's folder in PYTHONPATH, which may exist for the agent alone."""
    home = Path(__file__).resolve().parents[4]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [path for path in entries if path and Path(path).resolve() != home]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**env, "PYTHONPATH": os.pathsep.join(paths)} if paths else env
