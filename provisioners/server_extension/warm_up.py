"""Prepares roost for the installed kernelspecs when a server starts, so that even the first kernel starts fast.

One thread does this in the background: on this machine for one kernelspec after the other, the default one first, and
on the nodes of a cluster for all at once. It brings up the service, and, where kernels are forked, the agent and a
zygote. On a cluster this uses the nodes that are there: it never asks for new ones. A start that a user asks for
meanwhile waits for nothing here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from contextlib import nullcontext
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config

from roost.provisioners.kernel_environment import build_environment
from roost.provisioners.kernelspecs import read_kernelspec
from roost.provisioners.provisioner import RoostProvisioner
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.client.client import Client
from roost.scheduler.errors import NoNodeEver, NoNodeNow

from .adoption import list_roost_kernelspecs

_BEGIN_AFTER_S = 0.3
"""How long the preparation waits, so that a new server can answer its first requests."""
_MOST = 4
"""At most this many kernelspecs are prepared, the default one first. An agent keeps this many zygotes."""


def start_warm_up(kernel_manager: Any, log: logging.Logger) -> threading.Thread:
    """Prepare roost's kernelspecs in a thread. `kernel_manager` is the server's. The log gets a line per problem."""
    # A synchronous manager keeps Jupyter's class, and starts kernels with the server's own environment.
    environment = getattr(kernel_manager, "find_environment", lambda _: dict(os.environ))("")
    warm_up = _WarmUp(kernel_manager.kernel_spec_manager, kernel_manager.config, log, environment)
    first = kernel_manager.default_kernel_name
    thread = threading.Thread(
        target=lambda: asyncio.run(warm_up.run(first)), name="roost-warm-up", daemon=True
    )
    thread.start()
    return thread


class _WarmUp:
    """The preparation of one server's kernelspecs. It remembers the services that could not be brought up."""

    def __init__(
        self, kernelspecs: KernelSpecManager, config: Config, log: logging.Logger, environment: dict[str, str]
    ) -> None:
        self._kernelspecs = kernelspecs
        self._config = config
        self._log = log
        self._environment = environment
        self._failed: set[Client] = set()
        self._here = asyncio.Lock()
        """Held while a zygote is made on this machine."""

    async def run(self, first: str) -> None:
        await asyncio.sleep(_BEGIN_AFTER_S)
        try:
            prepared, left = 0, list_roost_kernelspecs(self._kernelspecs, self._config, first)
            while left and prepared < _MOST:
                now, left = left[: _MOST - prepared], left[_MOST - prepared :]
                prepared += sum(await asyncio.gather(*map(self._prepare, now)))
        except Exception as problem:  # noqa: BLE001 - the log has it, and the server goes on
            self._log.warning("roost: kernels could not be prepared: %s", problem)

    async def _prepare(self, name: str) -> bool:
        """Prepare a kernelspec as its first start would, but start no kernel. Return True if a zygote is ready for it.

        Return False at once if its service has failed for another kernelspec.
        """
        manager = AsyncKernelManager(
            kernel_name=name, kernel_spec_manager=self._kernelspecs, config=self._config
        )
        service = None
        try:
            read_kernelspec(self._kernelspecs, name)  # raises one sentence if it is malformed
            command, launch = await manager.pre_start_kernel(env=dict(self._environment))
            provisioner = manager.provisioner
            assert isinstance(provisioner, RoostProvisioner)
            service = provisioner.service
            if service in self._failed:
                return False
            await service.service()
            spec = get_spec(provisioner.backend)
            if not provisioner.fork or spec.has_agent_per_kernel:
                return False
            env = build_environment(
                launch["env"],
                provisioner.kernel_spec.env,
                is_local=spec.runs_on_this_machine,
                also=provisioner.environment,
            )
            async with self._here if spec.runs_on_this_machine else nullcontext():
                if service in self._failed:  # meanwhile, for another kernelspec
                    return False
                await service.warm(command, env, provisioner.request)
        except (NoNodeNow, NoNodeEver) as problem:  # its notebook will say so, and nothing can be prepared
            self._log.info("roost: kernels of %s are not prepared: %s", name, problem)
            return False
        except Exception as problem:  # noqa: BLE001 - the log has it, and the server goes on
            if service in self._failed:
                return False
            if service is not None:
                self._failed.add(service)
            self._log.warning("roost: kernels of %s are not prepared: %s", name, problem)
            return False
        return True
