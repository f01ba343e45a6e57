"""The last kernels that have ended: why, and the end of their logs. A file keeps the latest for the next scheduler."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from roost.launchers.daemon.file_input import put_aside, take_json
from roost.launchers.daemon.private_files import write_private_json
from roost.launchers.daemon.tasks import Timers
from roost.placement.model.json_codec import WireError, decode, encode
from roost.placement.model.last_entries import LastEntries
from roost.scheduler.messages import Kernel

log = logging.getLogger(__name__)

_REMEMBERED = 500
"""At most this many ended kernels are remembered."""
_SAVED = 50
"""At most this many of them are in the file. Each takes some KiB, most of it the end of its log."""
_SAVE_AFTER_S = 0.5
"""How long after an end the file is written. No end waits for that, and a burst is written once."""


class EndedKernels:
    """The last kernels that have ended, by id. Kernels in `file` are known at once. All is called on one event loop."""

    def __init__(self, timers: Timers, file: Path | None) -> None:
        self._timers = timers
        self._file = file
        self._kernels = LastEntries[str, Kernel](_REMEMBERED)
        self._can_save = True
        for kernel in _read(file) if file is not None else ():
            self._kernels[kernel.id] = kernel

    def add(self, kernel: Kernel) -> None:
        """Add a kernel. One that ran, and could not be started again, keeps its reason and its log."""
        earlier = self._kernels.pop(kernel.id, None)  # the latest comes last
        if earlier is not None and earlier.process is not None and kernel.process is None:
            kernel = replace(earlier, request=kernel.request, decision=kernel.decision)
        self._kernels[kernel.id] = kernel
        self._save_later()

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel, because it runs again under its id."""
        if self._kernels.pop(kernel_id, None) is not None:
            self._save_later()

    def _save_later(self) -> None:
        if self._file is not None and self not in self._timers:
            self._timers.later(_SAVE_AFTER_S, self._save, key=self)

    def find(self, prefix: str) -> Kernel | None:
        """Return the kernel of that id, or else the latest one whose id begins so; None if there is none."""
        if prefix in self._kernels:
            return self._kernels[prefix]
        found = (known for known in reversed(self._kernels) if prefix and known.startswith(prefix))
        return self._kernels.get(next(found, ""))

    def close(self) -> None:
        """Write the file now if it is out of date."""
        if self in self._timers:
            self._timers.cancel(self)
            self._save()

    def _save(self) -> None:
        assert self._file is not None
        kernels = [encode(kernel.without_keys()) for kernel in list(self._kernels.values())[-_SAVED:]]
        try:
            write_private_json(self._file, {"kernels": kernels})
        except OSError as problem:
            if self._can_save:
                log.warning("the last ended kernels cannot be saved: %s", problem)
            self._can_save = False
        else:
            self._can_save = True


def _read(file: Path) -> list[Kernel]:
    """Return the saved kernels; none if the file is missing or damaged."""
    try:
        known = take_json(file, log)
        return [
            decode(Kernel, kernel, ignore_unknown=True) for kernel in (known or {"kernels": ()})["kernels"]
        ]
    except OSError as problem:
        log.warning("the last ended kernels cannot be read: %s", problem)
    except (WireError, TypeError, KeyError) as problem:
        put_aside(file, f"has no list of kernels ({problem!r:.200})", log)
    return []
