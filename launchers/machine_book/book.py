"""`MachineBook`: the promises of all agents of this machine, and the room that they leave to this one.

    turn: take the lock ──> read all files ──> the caller checks ──> promise: write the own file ──> let go
               │
               └──> Conflict, if another process holds the lock for 5 s

A caller that only gives something back needs no turn.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from roost.launchers.daemon.process import current_start_time, start_time
from roost.placement.model import EPSILON, Request
from roost.placement.model.format import format_amount, format_bytes, format_count

from .lock import DEADLINE_S, find_holders, open_lock, take
from .places import Place, find_place
from .promise import (
    Held,
    Keeper,
    Promise,
    encode_promise,
    list_living,
    name_file,
    name_promise,
    read_file,
    read_folder,
    write_file,
)
from .rules import Amounts, BadRules, MachineRules, read_rules

log = logging.getLogger(__name__)


class Conflict(Exception):
    """A slice cannot be promised now. The text names the resource that is short, or another reason."""


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

    `cpus` and `memory_bytes` are what the machine has. `parents` names the GPU of each device that is a slice of one.
    """

    def __init__(
        self,
        owner: str,
        *,
        cpus: float,
        memory_bytes: int,
        parents: Mapping[str, str] | None = None,
        find: Callable[[], Place] = find_place,
        read: Callable[[], MachineRules] = read_rules,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._name = name_file(os.getuid(), owner)
        self._machine = Amounts(cpus=cpus, memory=memory_bytes)
        self._parents = dict(parents or {})
        self._find = find
        self._read_rules = read
        self._agent = Keeper(pid=os.getpid(), started_at=start_time(os.getpid()))
        self._deadline_s = deadline_s
        self._mine: dict[str, Promise] = {}
        """By lease id."""
        self._texts: dict[str, str] = {}
        """The same as they stand in the file, by `name_promise`."""
        self._place = Place(None, "nobody")

    # The promises of all

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[View]:
        """Have the book alone in the block, in which nothing may be awaited, and look. Raises `Conflict`."""
        folder = self._settle()
        with contextlib.ExitStack() as held:
            if folder is not None:
                lock = held.enter_context(open_lock(folder))
                if not await take(lock, self._deadline_s):
                    holders = ", ".join(find_holders(folder)) or "a process that cannot be seen"
                    raise Conflict(
                        f"the lock on {folder} is held for more than {self._deadline_s:g} s by {holders}"
                    )
                if self._settle() != folder:
                    raise Conflict("root has just made another folder for the machine's book")
            try:
                view = self._read()
            except BadRules as problem:
                raise Conflict(str(problem)) from None
            yield view

    def look(self) -> View:
        """Read the book. Raises `BadRules`, and `OSError`."""
        self._settle()
        return self._read()

    def _read(self) -> View:
        rules = self._read_rules()
        others = tuple(self._read_others())
        return View(
            others=others,
            cpus=sum(each.promise.cpus for each in others),
            memory_bytes=sum(each.promise.memory_bytes for each in others),
            devices=self._sum_devices(others),
            rooms=self._find_rooms(rules, others),
            gpu_ids=rules.gpu_ids,
        )

    def _read_others(self) -> list[Held]:
        folder = self._place.folder
        if folder is None:
            return []
        if self._mine and not (folder / self._name).exists():  # a program that cleans /tmp has removed it
            with contextlib.suppress(OSError):
                self._save()
        return list_living(read_folder(folder, but=self._name).values())

    def _sum_devices(self, others: Iterable[Held]) -> dict[str, float]:
        shares: dict[str, float] = {}
        parents: dict[str, str] = {}
        for each in others:
            parents |= each.promise.parents
            for device_id, share in each.promise.devices.items():
                shares[device_id] = shares.get(device_id, 0.0) + share
        summed = dict(shares)
        for part, gpu in (parents | self._parents).items():
            summed[gpu] = summed.get(gpu, 0.0) + shares.get(part, 0.0)
            summed[part] = summed.get(part, 0.0) + shares.get(gpu, 0.0)
        return {device_id: share for device_id, share in summed.items() if share}

    def _find_rooms(self, rules: MachineRules, others: Iterable[Held]) -> dict[str, Room]:
        rooms: dict[str, Room] = {}
        if not rules.is_given:
            return rooms
        all_of_them = [*(Held(os.getuid(), each) for each in self._mine.values()), *others]
        own = [each for each in all_of_them if each.uid == os.getuid()]
        for whose, held_by, limits in (
            ("all users of this machine hold", all_of_them, rules.find_totals(self._machine)),
            ("you hold", own, rules.limit_of(os.getuid())),
        ):
            held = _sum_amounts(held_by)
            for resource, most in limits:
                if most is not None:
                    left, before = most - held[resource], rooms.get(resource, Room())
                    why = f"{whose} {_format_pair(resource, held[resource], most)}"
                    rooms[resource] = Room(
                        most=min(most, before.most),
                        left=min(left, before.left),
                        why=why if left < before.left else before.why,
                    )
        return rooms

    # The promises of this agent

    def adopt(self, promises: Mapping[str, Promise]) -> None:
        """Promise again what an earlier agent of this name had promised, by lease id. Call it once, before `promise`.

        Raises `OSError`.
        """
        known: Mapping[str, Promise] = {}
        if self._place.folder is not None:
            with contextlib.suppress(FileNotFoundError):
                earlier = read_file(self._place.folder / self._name).file
                known = earlier.promises if earlier is not None else {}
        for lease_id, promise in promises.items():
            before = known.get(name_promise(lease_id))
            since = promise.since if before is None else before.since
            self._note(lease_id, replace(promise, since=since, parents=self._find_parents(promise)))
        self._save()

    def remove_dead(self) -> None:
        """Remove this user's files that count no more. Call it in a turn: another agent may take one of them over."""
        if (folder := self._place.folder) is not None:
            for name, found in read_folder(folder, but=self._name).items():
                if found.uid == os.getuid() and found.file is not None and not found.file.living():
                    (folder / name).unlink(missing_ok=True)
            for unfinished in folder.glob(f".{self._name}.*.tmp"):
                unfinished.unlink(missing_ok=True)

    def promise(self, lease_id: str, promise: Promise, *, launches: bool = False) -> None:
        """Promise a slice: write it to the file. Raises `OSError`; then nothing is promised.

        `launches`: the launch of its kernel is under way, as after `begin_launch`.
        """
        launching_since = current_start_time() if launches else 0.0
        parents = self._find_parents(promise)
        self._note(lease_id, replace(promise, parents=parents, launching_since=launching_since))
        try:
            self._save()
        except BaseException:
            self._forget(lease_id)
            raise

    def _find_parents(self, promise: Promise) -> dict[str, str]:
        return {each: self._parents[each] for each in promise.devices if each in self._parents}

    def begin_launch(self, lease_id: str) -> None:
        """Note that the kernel's process begins from now on. Does nothing for a lease without a promise."""
        known = self._mine.get(lease_id)
        if known is not None and not known.launching_since:
            self._note(lease_id, replace(known, keepers=(), launching_since=current_start_time()))
            self._save()

    def keep_by(self, lease_id: str, keeper: Keeper) -> None:
        """Note what keeps a promise alive if this agent dies. Does nothing for a lease without a promise."""
        if (known := self._mine.get(lease_id)) is not None:
            self._note(lease_id, replace(known, keepers=(*known.keepers, keeper), launching_since=0.0))
            self._save()

    def give_back(self, lease_id: str) -> None:
        """End a promise. May be repeated. If the file cannot be written, the next change writes it."""
        if lease_id in self._mine:
            self._forget(lease_id)
            with contextlib.suppress(OSError):
                self._save()

    def _note(self, lease_id: str, promise: Promise) -> None:
        self._mine[lease_id] = promise
        self._texts[name_promise(lease_id)] = encode_promise(promise)

    def _forget(self, lease_id: str) -> None:
        del self._mine[lease_id], self._texts[name_promise(lease_id)]

    def _save(self) -> None:
        """Write the own file, or remove it if nothing is promised. Raises `OSError`."""
        folder = self._place.folder
        if folder is None:
            return
        if self._mine:
            write_file(folder / self._name, self._agent, self._texts)
        else:
            (folder / self._name).unlink(missing_ok=True)

    # The folder

    def _settle(self) -> Path | None:
        """Return the folder of the book. After root has made one, the promises move there."""
        before, place = self._place, self._find()
        self._place = place
        if place.folder is None:
            if place != before:
                log.warning("nobody divides this machine between its users: %s", place.why)
        elif place.folder != before.folder:
            if place.way == "chosen":
                place.folder.mkdir(mode=0o700, exist_ok=True)
            if before.folder is not None:
                with contextlib.suppress(OSError):
                    self._save()  # first, so that the promises are always somewhere
                    (before.folder / self._name).unlink()
        return place.folder


def _sum_amounts(held: Iterable[Held]) -> dict[str, float]:
    promises = [each.promise for each in held]
    return {
        "cpus": sum(each.cpus for each in promises),
        "memory": sum(each.memory_bytes for each in promises),
        "gpus": sum(sum(each.devices.values()) for each in promises),
    }


def _format(resource: str, amount: float) -> str:
    if resource == "memory":
        return f"{format_bytes(amount)} of memory"
    return format_count(amount, "CPU" if resource == "cpus" else "GPU")


def _format_pair(resource: str, held: float, most: float) -> str:
    number = format_bytes(held) if resource == "memory" else format_amount(held)
    return f"{number} of at most {_format(resource, most)}"
