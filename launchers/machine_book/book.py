"""`MachineBook`: the promises of all agents of this machine, and the room that they leave to this one.

    turn ──> lock ──> look: read all files ──> the caller checks ──> promise: write the own file ──> look again
             │ held by another for 1 s                                                                  │
             └──> go on without it                                    withdraw, if somebody was faster <┘

The lock makes a turn fast, and the second look makes it safe: of two agents without the lock that write before they
read, at least one sees the other's promise. Therefore nobody can stop others by holding the lock.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from roost.launchers.daemon.file_input import UnfitFile
from roost.launchers.daemon.process import current_start_time, start_time
from roost.placement.model import EPSILON, Request
from roost.placement.model.format import format_amount, format_bytes, format_count

from .folder_reader import FolderReader, Held, Stranger
from .lock import DEADLINE_S, FolderLock, find_holders
from .places import Place, find_place, list_places
from .promise import (
    NamedProcess,
    Promise,
    find_pid_namespace,
    lives,
    name_file,
    name_files,
    read_promise,
    without_dead,
    write_promise,
)
from .rules import Amounts, MachineRules, RulesReader

log = logging.getLogger(__name__)

_RESOURCES = ("cpus", "memory", "gpus")
_NAMES = 8
"""How many names are tried for a promise's file."""
_READ_AGAIN = 5
"""How many times a promise is read again that changes while it is judged."""
LEFT_BEHIND = "is left by processes that have ended"
OF_OTHER_CONTAINER = "was made in another container"
ABOVE_LIMIT = "claims more than its user may hold"
"""Why a good promise does not count."""
_WITHOUT = MachineRules()


class Conflict(Exception):
    """A slice cannot be promised now. The text names the resource that is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """The room that the rules leave to this user, of one resource."""

    most: float = float("inf")
    """The amount that the rules allow if nobody holds anything."""
    left: float = float("inf")
    why: str = ""
    """The rule that leaves so little, as a clause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The promises of other agents on this machine, and the room that the rules leave to this agent's user."""

    others: tuple[Held, ...] = ()
    cpus: float = 0.0
    memory_bytes: int = 0
    devices: Mapping[str, float] = field(default_factory=dict)
    """The promised share of each device. That of a GPU includes its slices, and that of a slice its GPU."""
    rooms: Mapping[str, Room] = field(default_factory=dict)
    """By resource: cpus, memory, gpus. A resource without an entry has no limit."""
    shows_names: bool = False
    gpu_ids: tuple[str, ...] | None = None
    """The ids of the GPUs that root declares now; None: those of NVML."""

    def room(self, resource: str) -> Room:
        return self.rooms.get(resource, Room())

    def check(self, request: Request) -> None:
        """Raise `Conflict` if the rules do not leave this user enough for a request."""
        asked = {"cpus": request.cpus, "memory": request.memory_bytes, "gpus": request.gpus}
        for resource, amount in asked.items():
            room = self.room(resource)
            if amount and amount > room.left + EPSILON:
                raise Conflict(f"{_format(resource, amount)} asked for, {room.why}")


ALONE = View()
"""The view of an agent that shares its machine with nobody."""


class MachineBook:
    """The book of this machine, for the agent that owns `owner` (any text that names it, such as its folder).

    `cpus` and `memory_bytes` are what the machine has, and `devices` the ids of its devices. `parents` names the GPU of
    each device that is a slice of one.
    """

    def __init__(
        self,
        owner: str,
        *,
        cpus: float,
        memory_bytes: int,
        devices: Iterable[str] = (),
        parents: Mapping[str, str] | None = None,
        find: Callable[[], Place] = find_place,
        list_folders: Callable[[], Sequence[Path]] = list_places,
        rules: RulesReader | None = None,
        uid: int | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._owner = owner
        self._machine = Amounts(cpus=cpus, memory_bytes=memory_bytes)
        self._devices = frozenset(devices)
        self._parents = dict(parents or {})
        self._find = find
        self._list_folders = list_folders
        self._rules = rules or RulesReader()
        self._uid = os.getuid() if uid is None else uid
        self._agent = NamedProcess(pid=os.getpid(), started_at=start_time(os.getpid()))
        self._namespace = find_pid_namespace()
        self._deadline_s = deadline_s
        self._mine: dict[str, Promise] = {}
        """By lease id."""
        self._lock: FolderLock | None = None
        self._readers: dict[Path, FolderReader] = {}
        self._last: tuple[MachineRules, list[Held]] = _WITHOUT, []
        """The rules and the promises of the last look."""
        self._said = ""

    def close(self) -> None:
        """Close the lock. Promises stay: their kernels live on."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # The promises of all

    def look(self) -> View:
        """Read the book. Raises `BadRules`."""
        rules = self._rules.current()
        self._last = rules, self.read_all(rules)[0]
        return self._build_view(*self._last)

    def last_without(self, lease_id: str) -> View:
        """Return the view of the last `look`, but without the own promise for this lease."""
        rules, counted = self._last
        if (own := self._mine.get(lease_id)) is not None:  # else nobody shares a book here
            counted = [each for each in counted if each.promise.name != own.name]
        return self._build_view(rules, counted)

    def _build_view(self, rules: MachineRules, counted: Sequence[Held]) -> View:
        names = {promise.name for promise in self._mine.values()}
        others = tuple(each for each in counted if each.promise.name not in names)
        return View(
            others=others,
            cpus=math.fsum(each.promise.cpus for each in others),
            memory_bytes=sum(each.promise.memory_bytes for each in others),
            devices=self._sum_devices(others),
            rooms=self._find_rooms(rules, counted),
            shows_names=rules.shows_names,
            gpu_ids=rules.gpu_ids,
        )

    def read_all(self, rules: MachineRules = _WITHOUT) -> tuple[list[Held], list[Stranger]]:
        """Return the promises that count, and the files that do not. Own promises whose files are gone are put back."""
        seen: set[Path] = set()
        names: set[str] = set()
        strangers: list[Stranger] = []
        by_user: dict[int, list[Held]] = {}
        known: dict[int, dict[NamedProcess, bool]] = {self._uid: {self._agent: True}}
        for folder in self._list_folders():
            reader = self._reader_of(folder)
            held, unfit = reader.read()
            strangers += unfit
            for each in held:
                seen.add(each.path)
                if each.promise.name in names:
                    continue  # its agent has written it again in a better folder, which root has made meanwhile
                judged = self._judge(reader, each, known.setdefault(each.uid, {}))
                if isinstance(judged, Held):
                    names.add(judged.promise.name)
                    by_user.setdefault(each.uid, []).append(judged)
                elif judged is not None:
                    strangers.append(judged)
        self._put_back(seen)
        counted: list[Held] = []
        for uid, of_user in by_user.items():
            within, above = (of_user, []) if uid == self._uid else _keep_within(of_user, rules.limit_of(uid))
            counted += within
            strangers += [Stranger(each.path, uid, ABOVE_LIMIT) for each in above]
        return counted, strangers

    def _judge(
        self, reader: FolderReader, held: Held, known: dict[NamedProcess, bool]
    ) -> Held | Stranger | None:
        """Return the promise if it lives, as it is now. Return why it does not count, or None if it is gone."""
        for _ in range(_READ_AGAIN):
            if held.promise.pid_namespace != self._namespace:
                return Stranger(held.path, held.uid, OF_OTHER_CONTAINER)
            if lives(held.promise, held.uid, known):
                return held
            # Its agent may have named a kernel after the file was read, and have ended then.
            newer = reader.read_newer(held)
            if newer is held:
                return Stranger(held.path, held.uid, LEFT_BEHIND)
            if not isinstance(newer, Held):
                return newer
            held = newer
        return held  # somebody changes it all the time, so somebody lives

    def _sum_devices(self, others: Iterable[Held]) -> dict[str, float]:
        shares: dict[str, list[float]] = {}
        parents = dict(self._parents)
        for each in others:
            # What a stranger says of devices that this agent knows does not count, so each device takes one GPU.
            parents |= {
                part: gpu
                for part, gpu in each.promise.parents.items()
                if part in each.promise.devices and part not in self._devices
            }
            for device_id, share in each.promise.devices.items():
                shares.setdefault(device_id, []).append(share)
        by_device = {device_id: math.fsum(of_device) for device_id, of_device in shares.items()}
        summed = dict(by_device)
        for part, gpu in parents.items():
            summed[gpu] = summed.get(gpu, 0.0) + by_device.get(part, 0.0)
            summed[part] = summed.get(part, 0.0) + by_device.get(gpu, 0.0)
        return {device_id: share for device_id, share in summed.items() if share}

    def _find_rooms(self, rules: MachineRules, counted: Sequence[Held]) -> dict[str, Room]:
        if not rules.is_given:
            return {}
        rooms: dict[str, Room] = {}

        def limit(whose: str, held_by: Iterable[Held], limits: Amounts) -> None:
            held = _sum_amounts(held_by)
            for resource, most in limits:
                if most is not None:
                    left = most - held[resource]
                    why = f"{whose} {_format_pair(resource, held[resource], most)}"
                    before = rooms.get(resource, Room())
                    rooms[resource] = Room(
                        most=min(most, before.most),
                        left=min(left, before.left),
                        why=why if left < before.left else before.why,
                    )

        limit("all users of this machine hold", counted, rules.find_room(self._machine))
        limit("you hold", (each for each in counted if each.uid == self._uid), rules.limit_of(self._uid))
        for name, limits in rules.groups_of(self._uid).items():
            members = (each for each in counted if name in rules.groups_of(each.uid))
            limit(f"the members of the group {name} hold", members, limits)
        return rooms

    # The promises of this agent

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Have the book alone in the block. If another holds its lock for `DEADLINE_S`, go on without it.

        After `promise`, the caller looks again: without the lock, another agent may have been as fast.
        """
        lock = self._open_lock()
        has_lock = lock is not None and await lock.take(self._deadline_s)
        if lock is not None and not has_lock:
            holders = ", ".join(find_holders(lock.folder)) or "a process that cannot be seen"
            log.warning(
                "the lock on %s is held for more than %g s by %s", lock.folder, self._deadline_s, holders
            )
        try:
            yield
        finally:
            if has_lock and lock is not None:
                lock.release()

    def promise(
        self,
        lease_id: str,
        *,
        cpus: float,
        memory_bytes: int,
        devices: Mapping[str, float],
        since: float = 0.0,
        launches: bool = False,
    ) -> None:
        """Promise a slice: write its file. Does nothing where nobody shares a book. Raises `OSError`.

        `since`: when it was made; 0: as an earlier agent has noted it, or now. `launches`: its kernel begins next, as
        after `begin_launch`.
        """
        name = name_file(self._uid, self._owner, lease_id)
        self._write(
            lease_id,
            Promise(
                name=name,
                agent=self._agent,
                pid_namespace=self._namespace,
                cpus=cpus,
                memory_bytes=memory_bytes,
                devices=devices,
                parents={each: self._parents[each] for each in devices if each in self._parents},
                since=since or self._find_since(name),
                launching_since=current_start_time() if launches else 0.0,
            ),
        )

    def _find_since(self, name: str) -> float:
        """Return when an earlier agent has made the promise in this file; else the time now."""
        for folder in self._list_folders():
            with contextlib.suppress(OSError, UnfitFile):
                return read_promise(folder / name)[1].since
        return time.time()

    def begin_launch(self, lease_id: str) -> None:
        """Note that the kernel's process begins from now on. Does nothing for a lease without a promise."""
        known = self._mine.get(lease_id)
        if known is not None and not known.launching_since:
            self._write(
                lease_id, replace(without_dead(known, self._uid), launching_since=current_start_time())
            )

    def name_process(self, lease_id: str, pid: int, started_at: float) -> None:
        """Note a process of the kernel, which keeps the promise alive if this agent dies."""
        if (known := self._mine.get(lease_id)) is not None:
            process = NamedProcess(pid=pid, started_at=started_at)
            self._write(lease_id, replace(known, processes=(*known.processes, process), launching_since=0.0))

    def give_back(self, lease_id: str) -> None:
        """End a promise. May be repeated."""
        if (known := self._mine.pop(lease_id, None)) is not None:
            for folder in self._list_folders():
                with contextlib.suppress(FileNotFoundError):
                    (folder / known.name).unlink()

    def forget_earlier(self) -> None:
        """Remove this user's files that are no promises any more. Call it once.

        They are those of earlier agents with the same name, and those that ended processes of any agent have left.
        """
        beginning = name_files(self._uid, self._owner)
        mine = {promise.name for promise in self._mine.values()}
        for folder in self._list_folders():
            for path in (*folder.glob(f"{beginning}*.json"), *folder.glob(f".{beginning}*.tmp")):
                if path.name not in mine:
                    with contextlib.suppress(OSError):  # a stranger has taken the name
                        path.unlink()
            reader, known = self._reader_of(folder), {self._agent: True}
            for held in reader.read()[0]:
                judged = self._judge(reader, held, known) if held.uid == self._uid else None
                if isinstance(judged, Stranger) and judged.reason == LEFT_BEHIND:
                    with contextlib.suppress(OSError):
                        judged.path.unlink()

    def _write(self, lease_id: str, promise: Promise) -> None:
        place = self._find()
        folder, number = place.folder, 0
        if folder is not None and place.way == "chosen":
            folder.mkdir(mode=0o700, exist_ok=True)
        while folder is not None:
            try:
                write_promise(folder, promise)
            except PermissionError:  # a stranger has a file of this name
                number += 1
                if number == _NAMES:
                    raise
                promise = replace(promise, name=name_file(self._uid, self._owner, lease_id, number))
            else:
                self._mine[lease_id] = promise
                self._reader_of(folder).note_written(promise)
                return

    def _reader_of(self, folder: Path) -> FolderReader:
        return self._readers.setdefault(folder, FolderReader(folder))

    def _put_back(self, seen: set[Path]) -> None:
        """Write own promises again that somebody has removed, or whose folder is not the book's any more."""
        folder = self._find().folder
        for promise in self._mine.values() if folder is not None else ():
            if folder is not None and folder / promise.name not in seen:
                log.warning("%s was removed, and is written again", folder / promise.name)
                with contextlib.suppress(OSError):
                    write_promise(folder, promise)

    def _open_lock(self) -> FolderLock | None:
        place = self._find()
        if self._lock is not None and self._lock.folder != place.folder:
            self.close()
        if place.folder is None:
            if self._said != place.why:
                self._said = place.why
                log.warning("nobody divides this machine between its users: %s", place.why)
        elif self._lock is None:
            try:
                self._lock = FolderLock(place.folder)
            except OSError as problem:
                log.warning("the book of this machine cannot be locked: %s", problem)
        return self._lock


def _keep_within(of_user: Sequence[Held], limits: Amounts) -> tuple[list[Held], list[Held]]:
    """Return those promises of a user that are within the user's limits, the oldest first, and the others."""
    if limits == Amounts():
        return list(of_user), []
    within: list[Held] = []
    above: list[Held] = []
    sums = dict.fromkeys(_RESOURCES, 0.0)
    for each in sorted(of_user, key=lambda held: (held.promise.since, held.promise.name)):
        own = _amounts_of(each)
        if all(most is None or sums[name] + own[name] <= most + EPSILON for name, most in limits):
            within.append(each)
            sums = {name: sums[name] + own[name] for name in sums}
        else:
            above.append(each)
    return within, above


def _sum_amounts(held: Iterable[Held]) -> dict[str, float]:
    amounts = [_amounts_of(each) for each in held]
    return {name: math.fsum(each[name] for each in amounts) for name in _RESOURCES}


def _amounts_of(held: Held) -> dict[str, float]:
    promise = held.promise
    gpus = math.fsum(promise.devices.values())
    return {"cpus": promise.cpus, "memory": promise.memory_bytes, "gpus": gpus}


def _format(resource: str, amount: float) -> str:
    if resource == "memory":
        return f"{format_bytes(amount)} of memory"
    return format_count(amount, "CPU" if resource == "cpus" else "GPU")


def _format_pair(resource: str, held: float, most: float) -> str:
    number = format_bytes(held) if resource == "memory" else format_amount(held)
    return f"{number} of at most {_format(resource, most)}"
