"""A watch that tells when others may have given something back, without polling.

    look ──> follow(others) ──> events of their files, ends of their processes ──> on_change ──> look again

A promise ends with its file, or with the last process that keeps it alive. The watch therefore follows the file of
each promise, and one living process. If that process ends while another one keeps the promise, the next look finds
the promise still there, and the watch follows the other process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from pathlib import Path

from roost.launchers.daemon.inotify import ATTRIB, DELETE_SELF, DONT_FOLLOW, MOVE_SELF, ONESHOT, Inotify
from roost.launchers.daemon.tasks import Timers

from .folder_reader import Held
from .promise import NamedProcess, find_living

# A file that is replaced or removed loses its name, which ATTRIB reports. DELETE_SELF may come much later: it waits
# until nobody has the file open. ONESHOT: a user who changes a file all the time wakes this process once in a pause.
_CHANGES = ATTRIB | DELETE_SELF | MOVE_SELF | ONESHOT | DONT_FOLLOW
_OVERFLOW = -1
"""The watch of the event which says that others were lost."""
_PAUSE_S = 0.05
"""The shortest time between two calls of `on_change`."""
_AGAIN_S = 5.0
"""How often `on_change` is called while something cannot be watched."""
MOST = 256
"""At most this many promises are watched: each may take a descriptor. The others are looked at again every 5 s.

Each user gets as many of the watches as each other one, so that a stranger with thousands of promises takes few.
"""


class OthersWatch:
    """A watch over the promises that `follow` got last. It calls `on_change` when one of them may have ended.

    The call comes from the event loop, never from inside `follow`. The caller looks at the book again, and passes what
    it finds to `follow`. Without promises the watch has no descriptor.
    """

    def __init__(
        self, on_change: Callable[[], object], *, most: int = MOST, again_s: float = _AGAIN_S
    ) -> None:
        self._on_change = on_change
        self._most = most
        self._again_s = again_s
        self._timers = Timers()
        self._files: Inotify | None = None
        self._watches: dict[Path, int] = {}
        self._processes: dict[NamedProcess, int] = {}
        """The descriptor of each process that is watched."""
        self._followed: tuple[Held, ...] = ()
        """The promises of the last `follow`, if all are watched. Empty after an event: then a watch has ended."""

    @property
    def descriptors(self) -> int:
        """The number of descriptors that the watch has open."""
        return len(self._processes) + (self._files is not None and self._files.fd >= 0)

    def follow(self, others: Iterable[Held]) -> None:
        """Watch these promises, and no others. Costs nothing if they are those of the call before."""
        others = tuple(others)
        if not others:
            self._leave_all()
            return
        if others == self._followed:
            return
        watched = _choose(others, self._most)
        is_complete = self._follow_files({each.path for each in watched})
        is_complete &= self._follow_processes(watched)
        is_complete &= len(watched) == len(others)
        self._followed = others if is_complete else ()
        if is_complete:
            self._timers.cancel("again")
        elif "again" not in self._timers:
            self._timers.later(self._again_s, self._report, key="again")

    def call_soon(self) -> None:
        """Call `on_change` soon, as after an event. Calls that come together cause one."""
        if "soon" not in self._timers:
            self._timers.later(0.0 if "pause" not in self._timers else _PAUSE_S, self._report, key="soon")

    def close(self) -> None:
        """Watch nothing, and call nothing. May be repeated, and `follow` may be called again."""
        self._timers.close()
        self._leave_all()

    def _leave_all(self) -> None:
        self._timers.cancel("again")
        self._followed = ()
        for process in tuple(self._processes):
            self._leave(process)
        self._watches.clear()
        if self._files is not None:
            if self._files.fd >= 0:
                asyncio.get_running_loop().remove_reader(self._files.fd)
            self._files.close()
            self._files = None

    def _follow_files(self, paths: set[Path]) -> bool:
        """Watch these files. Return False if one cannot be watched."""
        if self._files is None:
            self._files = Inotify()
            if self._files.fd >= 0:
                asyncio.get_running_loop().add_reader(self._files.fd, self._read_files)
        for path in self._watches.keys() - paths:
            self._files.remove(self._watches.pop(path))
        new = paths - self._watches.keys()
        for path in new:
            if (watch := self._files.add(path, _CHANGES)) >= 0:
                self._watches[path] = watch
        # A change between the last look and now has sent no event, so look once more.
        if any(path in self._watches or not os.path.lexists(path) for path in new):
            self.call_soon()
        return len(self._watches) == len(paths)

    def _follow_processes(self, watched: Iterable[Held]) -> bool:
        """Watch a living process of each promise. Return False if one cannot be watched."""
        is_complete = True
        needed: set[NamedProcess] = set()
        for each in watched:
            named = {each.promise.agent, *each.promise.processes}
            if known := named & self._processes.keys():
                needed |= known
                continue
            process = next(
                (living for living in find_living(each.promise, each.uid) if self._watch(living)), None
            )
            if process is None:
                is_complete = False
            else:
                needed.add(process)
        for process in self._processes.keys() - needed:
            self._leave(process)
        return is_complete

    def _watch(self, process: NamedProcess) -> bool:
        """Watch a process, of whichever user. Return False where that is impossible."""
        # There are no pidfds here, the process has ended, no process can have this pid, or there are no descriptors.
        with contextlib.suppress(AttributeError, OSError, OverflowError):
            self._processes[process] = descriptor = os.pidfd_open(process.pid)
            asyncio.get_running_loop().add_reader(descriptor, self._note_end, process)
            self.call_soon()  # to look once more: another process may have got its pid meanwhile
            return True
        return False

    def _leave(self, process: NamedProcess) -> None:
        descriptor = self._processes.pop(process)
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)

    def _note_end(self, process: NamedProcess) -> None:
        self._leave(process)
        self._followed = ()
        self.call_soon()

    def _read_files(self) -> None:
        assert self._files is not None
        events = {watch for watch, _ in self._files.read()}
        ended = [path for path, watch in self._watches.items() if watch in events]
        for path in ended:  # the next `follow` watches it again, if the promise is still there
            del self._watches[path]
        if ended or _OVERFLOW in events:
            self._followed = ()
            self.call_soon()

    def _report(self) -> None:
        self._timers.later(_PAUSE_S, lambda: None, key="pause")
        self._on_change()


def _choose(others: Sequence[Held], most: int) -> Sequence[Held]:
    """Return at most this many promises: the first one of each user, then the second one of each user, and so on."""
    if len(others) <= most:
        return others
    seen: Counter[int] = Counter()
    ranked: list[tuple[int, Held]] = []
    for each in others:
        ranked.append((seen[each.uid], each))
        seen[each.uid] += 1
    ranked.sort(key=itemgetter(0))
    return [each for _, each in ranked[:most]]
