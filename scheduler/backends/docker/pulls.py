"""`ImagePulls`: the pulls of images that are under way. Kernels that need one image share one pull.

A pull ends with the image, with the engine's refusal, after `SILENT_S` without progress, or as soon as no kernel waits
for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from roost.launchers.daemon.tasks import cancel_all, join_shared, start_shared
from roost.scheduler.errors import LaunchError

from .engine import Engine, EngineError, JsonObject

log = logging.getLogger(__name__)

_SHOWS_S = 0.5
"""How often progress is shown."""
_MB = 1e6
_HERE = ("Download complete", "Verifying Checksum", "Extracting", "Pull complete")
"""What the engine says of a layer that it has downloaded."""


@dataclass(slots=True, kw_only=True)
class PullProgress:
    """How much of an image's layers the engine has downloaded, by what it reports line by line."""

    image: str
    _layers: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The downloaded bytes and the size of each layer that is or was downloaded, by its id."""

    def add(self, line: JsonObject) -> None:
        """Note a line of the engine's report."""
        layer, status, detail = line.get("id"), line.get("status"), line.get("progressDetail") or {}
        if status == "Downloading" and detail.get("total"):
            self._layers[str(layer)] = int(detail.get("current") or 0), int(detail["total"])
        elif status in _HERE and layer in self._layers:
            size = self._layers[layer][1]
            self._layers[layer] = size, size

    def describe(self) -> str:
        """Return the progress as a clause.

        >>> progress = PullProgress(image="team/python:3")
        >>> detail = {"current": 120_000_000, "total": 480_000_000}
        >>> progress.add({"status": "Downloading", "id": "a1", "progressDetail": detail})
        >>> progress.describe()
        'the image team/python:3 is being pulled: 120 of 480 MB'
        """
        pulled = f"the image {self.image} is being pulled"
        if not self._layers:
            return pulled
        done, total = (sum(amounts) / _MB for amounts in zip(*self._layers.values(), strict=True))
        return f"{pulled}: {done:.0f} of {total:.0f} MB"


@dataclass(slots=True, kw_only=True)
class _Pull:
    progress: PullProgress
    task: asyncio.Task[None] | None = None
    waiting: int = 0
    """The number of kernels that wait for it."""
    shown: str = ""
    timer: asyncio.TimerHandle | None = None
    """Set while progress is to be shown."""


class ImagePulls:
    """The pulls of one engine. `on_progress` gets the name of an image when `describe` has something new."""

    def __init__(self, engine: Engine, on_progress: Callable[[str], object]) -> None:
        self._engine, self._on_progress = engine, on_progress
        self._pulls: dict[str, _Pull] = {}
        """By the name of the image."""

    async def wait(self, image: str) -> None:
        """Pull an image, or join its pull, and wait until it has ended. It is given up if nobody waits any more.

        Raises `LaunchError` with the engine's reason, and `BackendUnavailable`.
        """
        pull = self._pulls.get(image)
        if pull is None:
            pull = self._pulls[image] = _Pull(progress=PullProgress(image=image))
            pull.task = start_shared(self._pull(pull))
        assert pull.task is not None
        pull.waiting += 1
        try:
            await join_shared(pull.task)
        finally:
            pull.waiting -= 1
            if not pull.waiting:
                pull.task.cancel()
                self._forget(pull)

    def describe(self, image: str) -> str:
        """Return how far the pull of an image is, as a clause."""
        pull = self._pulls.get(image)
        return (PullProgress(image=image) if pull is None else pull.progress).describe()

    async def close(self) -> None:
        """Give up all pulls."""
        await cancel_all({pull.task for pull in self._pulls.values() if pull.task is not None})

    async def _pull(self, pull: _Pull) -> None:
        image = pull.progress.image
        log.info("image=%s is pulled", image)
        lines: AsyncGenerator[JsonObject, None] = self._engine.pull(image)
        try:
            async with aclosing(lines):
                async for line in lines:
                    pull.progress.add(line)
                    if pull.timer is None:  # the last line of a download that stalls is shown too
                        pull.timer = asyncio.get_running_loop().call_later(_SHOWS_S, self._show, pull)
        except EngineError as problem:
            log.warning("image=%s is not pulled: %s", image, problem.message)
            raise LaunchError(f"Docker cannot pull the image {image}: {problem.message}.") from None
        finally:
            self._forget(pull)

    def _show(self, pull: _Pull) -> None:
        pull.timer = None
        if (text := pull.progress.describe()) != pull.shown:
            pull.shown = text
            self._on_progress(pull.progress.image)

    def _forget(self, pull: _Pull) -> None:
        if self._pulls.get(pull.progress.image) is pull:
            del self._pulls[pull.progress.image]
        if pull.timer is not None:
            pull.timer.cancel()
