"""This process as a driver of a Ray cluster: asked from threads, with deadlines, and away when Ray is.

Ray's calls block, some of them for a minute where its head is gone; then they are left to end by themselves.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from roost.scheduler.backends.agent_per_node.driver import Driver, OnNodes, in_short
from roost.scheduler.config.settings import ManagedSettings
from roost.scheduler.errors import BackendUnavailable, RoostError

from . import join, nodes, placement_groups
from .nodes import RayNode

T = TypeVar("T")

_LOOK_S = 0.5
"""So often Ray's state is read: joins, deaths and lost leases are seen within a second."""
_CALL_S = 8.0
_JOIN_S = 45.0
_THREADS = 32
"""A lease that waits for Ray holds one."""


class RayDriver(Driver[RayNode]):
    """Reads Ray's state twice a second."""

    manager = "Ray"
    daemon = "raylet"

    def __init__(self, settings: ManagedSettings, on_nodes: OnNodes) -> None:
        super().__init__(on_nodes)
        self._settings = settings
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ray")

    async def close(self) -> None:
        await super().close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def look(self) -> None:
        await asyncio.sleep(_LOOK_S)

    async def ask(self, question: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """What `question` returns, from a thread; raises `BackendUnavailable` where it fails or takes too long."""
        self._check()
        try:
            return await self._in_thread(functools.partial(question, *arguments, **named), deadline_s=_CALL_S)
        except (RoostError, asyncio.CancelledError):
            raise
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Ray has not answered for {_CALL_S:g} s") from None
        except Exception as error:
            raise BackendUnavailable(f"Ray failed: {in_short(error)}") from error

    async def answer(self, reference: Any, deadline_s: float, what: str) -> Any:
        """What the task of this reference returns; `what` completes a sentence."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(reference.future()), deadline_s)
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Ray took longer than {deadline_s:g} s {what}") from None
        except Exception as error:
            raise BackendUnavailable(f"Ray failed {what}: {in_short(error)}") from error

    async def _join(self, known: str) -> str:
        address = self._settings.address or os.environ.get("RAY_ADDRESS") or known
        join_ray = functools.partial(join.join, address, namespace=placement_groups.NAMESPACE)
        return await self._in_thread(join_ray, deadline_s=_JOIN_S)

    async def _fetch(self) -> Iterable[RayNode]:
        return await self.ask(nodes.read, self.nodes.values())

    async def _in_thread(self, call: Callable[[], T], *, deadline_s: float) -> T:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.run_in_executor(self._threads, call), deadline_s)
