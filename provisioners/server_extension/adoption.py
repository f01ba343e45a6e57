"""Adoption: a server that starts finds the kernels of its predecessor, and lists them under their old ids.

The schedulers know the kernels of each server name. The server's own files (`server_state.py`) name the schedulers to
ask. For a scheduler that does not answer, these files also list the kernels.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from traitlets.config import Config

from roost.placement.model.format import format_count
from roost.provisioners.kernel_json import PROVISIONER
from roost.provisioners.provisioner import RoostProvisioner
from roost.scheduler.client.client import Client, KernelList
from roost.scheduler.client.service_folder import NAME_VARIABLE
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import Kernel

from .server_state import ServerState

_ANSWER_S = 4.0
"""How long a scheduler may take to list its kernels.

If it takes longer, the server at first adopts only the kernels in the server's own files.
"""

_TRIES = 60
_PAUSE_S = 5.0
_LATE_ANSWER_S = 60.0
"""How long each answer of a late scheduler may take. The server asks `_TRIES` times, with pauses of `_PAUSE_S`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundKernel:
    """A kernel of an earlier server. `name` is its kernelspec, and `session` the notebook or session it belongs to."""

    kernel_id: str
    name: str
    cwd: str = ""
    session: str = ""


class Places(Protocol):
    """What a kernel manager says about where the kernels of an earlier server may be."""

    def list_clients(self, kernel_name: str, own: Client) -> Sequence[Client]:
        """Return the clients of the services that may have kernels of a kernelspec. `own` is the server's."""

    def may_have(self, client: Client, kernel_id: str) -> bool:
        """True if the service of this client may have a kernel of this id."""


class KernelFinder:
    """A search for the kernels of a server name, in the schedulers of the installed kernelspecs."""

    def __init__(
        self,
        kernelspecs: KernelSpecManager,
        config: Config,
        state: ServerState,
        log: logging.Logger,
        places: Places,
    ) -> None:
        self._places = places
        self._kernelspecs = kernelspecs
        self._config = config
        self._state = state
        self._log = log
        self._found: set[str] = set()
        self._named: set[str] = set()  # servers that were named in the log
        self._late: list[tuple[Client, Sequence[str], str]] = []

    async def find_late(self, adopt: Callable[[list[FoundKernel]], Awaitable[None]]) -> None:
        """Ask again each scheduler that gave `find` no complete list, and call `adopt` with the further kernels.

        This may take minutes.
        """
        await asyncio.gather(*(self._ask_again(*late, adopt) for late in self._late))

    async def _ask_again(
        self,
        client: Client,
        names: Sequence[str],
        problem: str,
        adopt: Callable[[list[FoundKernel]], Awaitable[None]],
    ) -> None:
        for _ in range(_TRIES):
            own, again = await self._read(client, _LATE_ANSWER_S)
            await adopt([_describe(kernel.id, kernel, {}, names) for kernel in own])
            if not again:
                return
            if again != problem:
                self._warn(names, again)
                problem = again
            await asyncio.sleep(_PAUSE_S)

    async def _read(self, client: Client, within_s: float) -> tuple[list[Kernel], str]:
        """Return the kernels of this server's name that were not returned before.

        Also return the reason why the list may be incomplete; empty if it is complete.
        """
        try:
            kernels = await client.kernels().within(within_s)
        except (RoostError, asyncio.TimeoutError) as problem:
            return [], str(problem) or f"no answer within {within_s:g} s"
        new = [
            kernel
            for kernel in kernels
            if kernel.owner.server == self._state.name
            and kernel.id not in self._found
            and self._places.may_have(client, kernel.id)
        ]
        self._found.update(kernel.id for kernel in new)
        self._name_other_servers(kernels)
        return new, _say_what_is_missing(kernels)

    def _name_other_servers(self, kernels: Sequence[Kernel]) -> None:
        """Log the kernels of servers that have ended, of another port or folder, and how to take them over."""
        counts = Counter(
            kernel.owner.server
            for kernel in kernels
            if kernel.owner.can_adopt and not kernel.is_held and kernel.owner.server != self._state.name
        )
        for name in counts.keys() - self._named:
            self._log.warning(
                "roost: %s of your server %r live, which has ended. That server takes them over when it starts again, "
                "and so does one with c.RoostExtension.server_name = %r. `roost stop --server '%s'` ends them.",
                *(format_count(counts[name], "kernel"), name, name, name),
            )
            self._named.add(name)

    def _warn(self, names: Sequence[str], problem: str) -> None:
        self._log.warning("roost: not all kernels of %s are known yet: %s", ", ".join(names), problem)

    async def find(self) -> list[FoundKernel]:
        """Return all kernels to adopt. A kernel is left out if its kernelspec is gone."""
        names = list_roost_kernelspecs(self._kernelspecs, self._config)
        services: dict[Client, list[str]] = {}
        for name in names:
            try:
                for client in self._places.list_clients(name, self._connect(name)):
                    services.setdefault(client, []).append(name)
            except Exception as problem:  # noqa: BLE001 - the kernels of other kernelspecs are adopted
                self._log.warning("roost: kernels of %s are not adopted: %s", name, problem)
        found = await asyncio.gather(*(self._ask(each, given) for each, given in services.items()))
        kernels = {kernel.kernel_id: kernel for kernels in found for kernel in kernels}
        lost = [
            kernel_id
            for kernel_id, facts in self._state.kernels.items()
            if kernel_id not in kernels and facts.get("name") not in names
        ]
        for kernel_id in lost:
            self._log.warning("roost: kernel %s is not adopted: its kernelspec is gone.", kernel_id)
        return list(kernels.values())

    def _connect(self, name: str) -> Client:
        manager = AsyncKernelManager(
            kernel_name=name, kernel_spec_manager=self._kernelspecs, config=self._config
        )
        factory = KernelProvisionerFactory.instance(config=self._config)
        provisioner = factory.create_provisioner_instance("", manager.kernel_spec, parent=manager)
        assert isinstance(provisioner, RoostProvisioner)
        return provisioner.service

    async def _ask(self, client: Client, names: Sequence[str]) -> list[FoundKernel]:
        """Return this server's kernels in one scheduler.

        `names` are the kernelspecs that use this scheduler.
        """
        remembered = {
            kernel_id: facts
            for kernel_id, facts in list(self._state.kernels.items())
            if facts.get("name") in names and not self._is_elsewhere(client, kernel_id, facts)
        }
        # The folder of the sockets of a server in a container is empty after its restart, so a scheduler is started.
        is_container = bool(os.environ.get("JUPYTERHUB_SERVICE_PREFIX"))
        if not (remembered or is_container or client.is_running()):
            return []
        read, again = await self._read(client, _ANSWER_S)
        if again:
            self._late.append((client, names, again))
            self._warn(names, again)
        own = {kernel.id: kernel for kernel in read}
        found = []
        for kernel_id in own.keys() | remembered.keys():
            facts = remembered.get(kernel_id, {})
            found.append(_describe(kernel_id, own.get(kernel_id), facts, names))
        return found

    def _is_elsewhere(self, client: Client, kernel_id: str, facts: Mapping[str, str]) -> bool:
        """True if the kernel is in another world of this user. The log then says so once, and how to end it."""
        world = facts.get("world", "")
        if not (client.world and world) or world == client.world:
            return False
        self._log.warning(
            "roost: kernel %s is not adopted: it is in another world of yours, such as a batch job. "
            "`%s=%s roost stop %s` ends it.",
            *(kernel_id, NAME_VARIABLE, world, kernel_id),
        )
        self._state.forget(kernel_id)
        return True


def _say_what_is_missing(kernels: KernelList) -> str:
    """Return why other kernels may belong to the server too; empty if the list is complete."""
    if kernels.unreachable:
        return f"these agents are unreachable: {', '.join(kernels.unreachable)}"
    ownerless = [kernel.id for kernel in kernels if not kernel.owner.pid]  # the agent knows the owner
    return f"no agent has reported yet who owns these kernels: {', '.join(ownerless)}" if ownerless else ""


def _describe(
    kernel_id: str, kernel: Kernel | None, facts: Mapping[str, str], names: Sequence[str]
) -> FoundKernel:
    known = kernel.kernel_name if kernel is not None else ""
    name = next((each for each in (known, facts.get("name", "")) if each in names), names[0])
    process = kernel.process if kernel is not None else None
    cwd = process.cwd if process is not None else facts.get("cwd", "")
    return FoundKernel(kernel_id=kernel_id, name=name, cwd=cwd, session=facts.get("session", ""))


def list_roost_kernelspecs(kernelspecs: KernelSpecManager, config: Config, first: str = "") -> list[str]:
    """Return the names of roost's kernelspecs, with `first` first."""
    default = KernelProvisionerFactory.instance(config=config).default_provisioner_name
    found = []
    for name, description in kernelspecs.get_all_specs().items():
        own = (description["spec"].get("metadata") or {}).get("kernel_provisioner", {})
        if isinstance(own, Mapping) and own.get("provisioner_name", default) == PROVISIONER:
            found.append(name)
    return sorted(found, key=lambda name: (name != first, name))
