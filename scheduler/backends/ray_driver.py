"""This process as a driver of a Ray cluster: asked from threads, with deadlines, and away when Ray is.

Ray's calls block, some of them for a minute where its head is gone; then they are left to end by themselves.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Collection, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from roost.scheduler.errors import BackendUnavailable, RoostError

from . import ray_groups, ray_join, ray_state
from .ray_state import RayNode

log = logging.getLogger(__name__)

T = TypeVar("T")

_CALL_S = 8.0
_JOIN_S = 45.0
_THREADS = 32
"""A lease that waits for Ray holds one."""

OnNodes = Callable[[Collection[str], Collection[str]], None]
"""Called with the ids of nodes that are new or differ, and of those that are gone."""


class RayDriver:
    """`away` says why Ray cannot be asked, and is empty while it can; `nodes` are those of the last reading."""

    def __init__(self, on_nodes: OnNodes) -> None:
        self.away = "it has not been joined yet"
        self.nodes: Mapping[str, RayNode] = {}
        self._on_nodes = on_nodes
        self._read_at = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ray")

    def close(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def join(self, address: str) -> str:
        """Become a driver, and read the nodes; the cluster's address. Raises `BackendUnavailable`, `ConfigError`."""
        join = functools.partial(ray_join.join, address, namespace=ray_groups.NAMESPACE)
        joined = await self._in_thread(join, deadline_s=_JOIN_S)
        self.away = ""
        await self.read()
        return joined

    async def read(self, *, max_age_s: float = 0.0) -> None:
        """Read Ray's nodes, once for all who wait for it; raises `BackendUnavailable`, and Ray is away then."""
        if self._read_at and time.monotonic() - self._read_at <= max_age_s:
            return
        if self._reading is None or self._reading.done():
            self._reading = watched(self._read())
        await asyncio.shield(self._reading)

    def forget_reading(self) -> None:
        """Something has changed: whatever age would do, read anew."""
        self._read_at = 0.0

    async def ask(self, question: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """What `question` returns, from a thread; raises `BackendUnavailable` where it fails or takes too long."""
        if self.away:
            raise BackendUnavailable(f"the Ray cluster is away: {self.away}")
        try:
            return await self._in_thread(functools.partial(question, *arguments, **named), deadline_s=_CALL_S)
        except (RoostError, asyncio.CancelledError):
            raise
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Ray has not answered for {_CALL_S:g} s") from None
        except Exception as error:
            raise BackendUnavailable(f"Ray failed: {_in_short(error)}") from error

    async def answer(self, reference: Any, deadline_s: float, what: str) -> Any:
        """What the task of this reference returns; `what` completes a sentence."""
        try:
            return await asyncio.wait_for(asyncio.wrap_future(reference.future()), deadline_s)
        except asyncio.TimeoutError:
            raise BackendUnavailable(f"Ray took longer than {deadline_s:g} s {what}") from None
        except Exception as error:
            raise BackendUnavailable(f"Ray failed {what}: {_in_short(error)}") from error

    async def _read(self) -> None:
        read_at = time.monotonic()
        try:
            nodes = {node.id: node for node in await self.ask(ray_state.read, self.nodes.values())}
        except BackendUnavailable as problem:
            if not self.away:
                self.away = str(problem)
                log.warning("the Ray cluster is away: %s", problem)
            raise
        changed = [name for name, node in nodes.items() if self.nodes.get(name) != node]
        gone = self.nodes.keys() - nodes.keys()
        self.nodes, self._read_at = nodes, read_at
        if changed or gone:
            self._on_nodes(changed, gone)

    async def _in_thread(self, call: Callable[[], T], *, deadline_s: float) -> T:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.run_in_executor(self._threads, call), deadline_s)


def watched(coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """A task whose error is nobody's where nobody waits for it any more."""
    task = asyncio.get_running_loop().create_task(coroutine)
    task.add_done_callback(_look)
    return task


def _look(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and task.exception() is not None:
        log.debug("a task failed: %s", task.exception())


def _in_short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
