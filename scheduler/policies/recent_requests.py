"""What was asked for lately, and the workload that policies learn from it: a cache, never part of the state."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from roost.launchers.daemon.private_files import read_json, write_private_json
from roost.placement import Request, Snapshot, Workload
from roost.placement.workload import USEFUL_FROM

log = logging.getLogger(__name__)

WINDOW = 2_000
"""As many of the latest requests are remembered."""
_CLASSES = 100
"""So many different requests count: what is learned from them takes memory and time for each."""
_DAY_S = 86_400.0
_SAVE_AFTER_S = 1.0
"""The file is written so long after a request, so that no start waits for it and a burst is written once."""


class RecentRequests:
    """The latest requests, remembered in `file` (where there is one), and the workload made of them.

    The workload is made anew by the request with GPUs that makes it useful (the 20th), then whenever half as many have
    come as it was made of, after a day, and when the cluster's GPU models are others. `clock` is monotonic. Belongs to
    an event loop.
    """

    def __init__(self, file: Path | None, *, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock
        self._requests = deque(_read(file) if file else [], maxlen=WINDOW)
        self._workload = Workload()
        self._models: frozenset[str] = frozenset()
        self._made_at = clock()
        self._new = self._with_gpus()
        self._next = USEFUL_FROM
        self._saving: asyncio.TimerHandle | None = None
        self._can_save = True

    def note(self, request: Request) -> None:
        """A kernel was asked for."""
        self._requests.append(_amounts(*_class(request)))
        self._new += bool(request.gpus)
        if self._file is not None and self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(_SAVE_AFTER_S, self._save)

    def workload(self, snapshot: Snapshot) -> Workload:
        """What is known of the requests to come; the same object until it is made anew."""
        models = frozenset(snapshot.models)
        is_old = self._new > 0 and self._clock() - self._made_at > _DAY_S
        if len(snapshot) and (self._new >= self._next or is_old or models != self._models):
            self._make(snapshot)
            self._models = models
        return self._workload

    def close(self) -> None:
        """Write down what is not yet."""
        if self._saving is not None:
            self._saving.cancel()
            self._save()

    def _make(self, snapshot: Snapshot) -> None:
        known = self._with_gpus()
        made = Workload.of(self._frequent() if known >= USEFUL_FROM else (), snapshot)
        if made != self._workload:
            self._workload = made
        self._made_at, self._new = self._clock(), 0
        self._next = USEFUL_FROM - known if known < USEFUL_FROM else known // 2

    def _frequent(self) -> list[Request]:
        """The requests of the most frequent classes, those with GPUs first."""
        counts = Counter(map(_class, self._requests))
        ranked = sorted(counts, key=lambda each: (each[1] == 0, -counts[each], each))
        frequent = set(ranked[:_CLASSES])
        return [request for request in self._requests if _class(request) in frequent]

    def _with_gpus(self) -> int:
        return sum(1 for request in self._requests if request.gpus)

    def _save(self) -> None:
        self._saving = None
        assert self._file is not None
        requests = [_class(request) for request in self._requests]
        try:
            write_private_json(self._file, {"requests": requests})
        except OSError as problem:
            if self._can_save:
                log.warning("the latest requests are not remembered: %s", problem)
            self._can_save = False
        else:
            self._can_save = True


def _class(request: Request) -> tuple[float, float, int, tuple[str, ...]]:
    return request.cpus, request.gpus, request.memory_bytes, request.gpu_models


def _amounts(cpus: float, gpus: float, memory_bytes: int, gpu_models: Sequence[str]) -> Request:
    return Request(cpus=cpus, gpus=gpus, memory_bytes=memory_bytes, gpu_models=tuple(gpu_models))


def _read(file: Path) -> list[Request]:
    """What the file remembers; nothing where it is missing or damaged."""
    try:
        known: Any = read_json(file)
        return [_amounts(*amounts) for amounts in known["requests"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return []
