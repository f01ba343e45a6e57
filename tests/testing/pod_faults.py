"""The faults of a manager that runs each kernel in a pod."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from roost.launchers.protocol.messages import Lease
from roost.scheduler.backends.agent_per_kernel import Pod, PodChange, PodCluster
from roost.scheduler.errors import BackendUnavailable

from .deadlines import allow_s
from .faults import AWAY, Faults


class PodFaults(Faults):
    """Faults of a manager that runs each kernel in a pod. `cluster` is its class, a `PodCluster`."""

    def __init__(self, cluster: type[PodCluster]) -> None:
        super().__init__()
        self._cluster = cluster
        self._moved: dict[str, str] = {}
        self._seen: dict[str, Pod] = {}
        self._streams: list[asyncio.Queue[PodChange | Exception | None]] = []
        self._is_away = False
        self._refused = asyncio.Event()

    def change(self, patch: pytest.MonkeyPatch) -> None:
        cluster = self._cluster
        join, pods, create, delete, changes = (
            cluster.join,
            cluster.pods,
            cluster.create,
            cluster.delete,
            cluster.changes,
        )

        async def join_if_there(each: PodCluster) -> str:
            if self._is_away:
                self._refused.set()
                raise BackendUnavailable(AWAY)
            return await join(each)

        async def read(each: PodCluster) -> Sequence[Pod]:
            found = {pod.lease.id: pod for pod in map(self._see, await pods(each)) if pod is not None}
            for lease_id in self.shown.keys() | self.ended.keys():
                if lease_id in self._seen:
                    found[lease_id] = self._distort(self._seen[lease_id])
            return list(found.values())

        async def grant(each: PodCluster, *asked: Any, **how: Any) -> Pod:
            await self.wait_for_answer()  # before the grant: nobody ends a creation
            pod = await create(each, *asked, **how)
            return self._see(pod) or pod

        async def give_back(each: PodCluster, lease_id: str) -> None:
            self.released.append(lease_id)
            await delete(each, lease_id)

        async def follow(each: PodCluster) -> AsyncIterator[PodChange]:
            stream: asyncio.Queue[PodChange | Exception | None] = asyncio.Queue()
            self._streams.append(stream)
            reading = asyncio.ensure_future(_copy(changes(each), stream))
            try:
                while (change := await stream.get()) is not None:
                    if isinstance(change, Exception):
                        raise change
                    if (seen := self._change_news(change)) is not None:
                        yield seen
            finally:
                self._streams.remove(stream)
                reading.cancel()
                await asyncio.wait([reading])

        for name, changed in (
            ("join", join_if_there),
            ("pods", read),
            ("create", grant),
            ("delete", give_back),
            ("changes", follow),
        ):
            patch.setattr(cluster, name, changed)

    @asynccontextmanager
    async def gap(self, lease: Lease) -> AsyncIterator[None]:
        """Let the manager be away in the block. It begins once roost has tried to join the manager again."""
        self._is_away = True
        self._report(BackendUnavailable(AWAY))
        await asyncio.wait_for(self._refused.wait(), allow_s(60))
        yield
        self._is_away = False

    def show(self, lease: Lease) -> None:
        super().show(lease)
        self._report(PodChange(kind="pod", pod=self._seen[lease.id]))

    def hide(self, lease: Lease) -> None:
        super().hide(lease)
        self._report(PodChange(kind="gone", lease_id=lease.id, reason="it was deleted"))

    def end(self, lease: Lease, reason: str) -> None:
        super().end(lease, reason)
        self._report(PodChange(kind="pod", pod=self._seen[lease.id]))

    def move(self, lease: Lease, node_id: str) -> None:
        self._moved[lease.id] = node_id
        self._report(PodChange(kind="pod", pod=self._seen[lease.id]))

    def _report(self, news: PodChange | Exception) -> None:
        for stream in self._streams:
            stream.put_nowait(news)

    def _change_news(self, change: PodChange) -> PodChange | None:
        if change.pod is not None:
            pod = self._see(change.pod)
            return replace(change, pod=pod) if pod is not None else None
        is_kept = change.kind == "gone" and change.lease_id in self.shown.keys() | self.ended.keys()
        return None if is_kept else change

    def _see(self, pod: Pod) -> Pod | None:
        """Note a pod as the manager really has it. Return it as the manager shows it, or None if it is hidden."""
        if pod.lease.state != "lost":
            self._seen[pod.lease.id] = pod
        return None if pod.lease.id in self.hidden else self._distort(pod)

    def _distort(self, pod: Pod) -> Pod:
        lease = pod.lease
        if lease.id in self.ended:
            return replace(pod, lease=replace(lease, state="lost", reason=self.ended[lease.id]))
        if lease.id in self._moved:
            return replace(pod, lease=replace(lease, node_id=self._moved[lease.id]))
        return self._seen[lease.id] if lease.id in self.shown else pod


async def _copy(
    changes: AsyncIterator[PodChange], stream: asyncio.Queue[PodChange | Exception | None]
) -> None:
    """Copy all changes to the stream, and then the error or the end."""
    try:
        async for change in changes:
            stream.put_nowait(change)
        stream.put_nowait(None)
    except Exception as problem:  # noqa: BLE001 - the reader of the stream raises it
        stream.put_nowait(problem)
