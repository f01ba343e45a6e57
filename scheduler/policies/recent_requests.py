"""The latest requests, and the workload that policies adapt to. If they are lost, roost collects them again."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from roost.launchers.daemon.file_input import put_aside, take_json
from roost.launchers.daemon.private_files import write_private_json
from roost.placement import Request, Snapshot, Workload
from roost.placement.rules.workload import USEFUL_FROM, build_request, get_class

log = logging.getLogger(__name__)

WINDOW = 2_000
"""At most this many requests are remembered."""
_CLASSES = 100
"""At most this many classes of equal requests enter the workload, because each costs memory and time."""
_DAY_S = 86_400.0
_SAVE_AFTER_S = 1.0
"""How long after a request the file is written. No start waits for that, and a burst is written once."""


class RecentRequests:
    """The latest requests, also kept in `file` if there is one, and the workload computed from them.

    The workload is computed at the 20th request with GPUs. It is computed again when the number of these requests has
    grown by half, when one of them is new and a day has passed, or when the cluster's GPU models have changed. `clock`
    is monotonic. All methods are called on one event loop.
    """

    def __init__(self, file: Path | None, *, clock: Callable[[], float]) -> None:
        self._file = file
        self._clock = clock
        self._requests = deque(_read(file) if file else [], maxlen=WINDOW)
        self._workload = Workload()
        self._models: frozenset[str] = frozenset()
        self._computed_at = clock()
        self._new = self._with_gpus()
        self._next = USEFUL_FROM
        self._saving: asyncio.TimerHandle | None = None
        self._can_save = True

    def note(self, request: Request) -> None:
        self._requests.append(build_request(*get_class(request)))
        self._new += bool(request.gpus)
        if self._file is not None and self._saving is None:
            self._saving = asyncio.get_running_loop().call_later(_SAVE_AFTER_S, self._save)

    def workload(self, snapshot: Snapshot) -> Workload:
        """Return the workload of the recent requests, for the GPU models of the snapshot.

        It is computed again when many requests are new, when it is a day old, or if the models differ. Until then the
        same object is returned.
        """
        models = frozenset(snapshot.models)
        is_old = self._new > 0 and self._clock() - self._computed_at > _DAY_S
        if len(snapshot) and (self._new >= self._next or is_old or models != self._models):
            self._compute(snapshot)
            self._models = models
        return self._workload

    def close(self) -> None:
        """Write the file now if it is out of date."""
        if self._saving is not None:
            self._saving.cancel()
            self._save()

    def _compute(self, snapshot: Snapshot) -> None:
        known = self._with_gpus()
        workload = Workload.of(self._frequent() if known >= USEFUL_FROM else (), snapshot)
        if workload != self._workload:
            self._workload = workload
        self._computed_at, self._new = self._clock(), 0
        self._next = USEFUL_FROM - known if known < USEFUL_FROM else known // 2

    def _frequent(self) -> list[Request]:
        """Return the requests of the most frequent classes; classes with GPUs come first."""
        counts = Counter(map(get_class, self._requests))
        ranked = sorted(counts, key=lambda each: (each[1] == 0, -counts[each], each))
        frequent = set(ranked[:_CLASSES])
        return [request for request in self._requests if get_class(request) in frequent]

    def _with_gpus(self) -> int:
        return sum(1 for request in self._requests if request.gpus)

    def _save(self) -> None:
        self._saving = None
        assert self._file is not None
        requests = [get_class(request) for request in self._requests]
        try:
            write_private_json(self._file, {"requests": requests})
        except OSError as problem:
            if self._can_save:
                log.warning("the latest requests cannot be saved: %s", problem)
            self._can_save = False
        else:
            self._can_save = True


def _read(file: Path) -> list[Request]:
    """Return the saved requests; none if the file is missing or damaged."""
    try:
        if (known := take_json(file, log)) is None:
            return []
        found: Any = known["requests"][-WINDOW:]
        return [build_request(*amounts) for amounts in found]
    except OSError as problem:
        log.warning("the latest requests cannot be read: %s", problem)
    except (ValueError, TypeError, KeyError, OverflowError) as problem:
        put_aside(file, f"has no list of requests ({problem!r:.200})", log)
    return []
