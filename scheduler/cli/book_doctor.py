"""The findings of `roost doctor` in the machine's book, and the repairs there. They need no service.

read the folders ──> remove dead promises (--fix) ──> read again ──> findings
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from roost.launchers.daemon.file_input import show_path
from roost.launchers.machine_book.book import ABOVE_LIMIT, LEFT_BEHIND, OF_OTHER_CONTAINER, MachineBook
from roost.launchers.machine_book.folder_reader import Held, Stranger
from roost.launchers.machine_book.leftovers import find_foreign, find_unfinished, remove_dead
from roost.launchers.machine_book.lock import DEADLINE_S, FolderLock, find_holders
from roost.launchers.machine_book.places import Place, find_place, list_places
from roost.launchers.machine_book.rules import BadRules, MachineRules, RulesReader
from roost.placement.model.format import format_age, format_count
from roost.scheduler.messages import Finding

from .machine import write_root_command
from .outside_use import find_outside_use

_FIX = "run `roost doctor --fix`"
_MOST_LINES = 5
"""How many lines of strangers are shown."""
_AHEAD_S = 60.0
"""A promise from further in the future was made before the clock was set back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BookState:
    """The folders of the book as they were read."""

    place: Place
    folders: Sequence[Path]
    counted: Sequence[Held]
    strangers: Sequence[Stranger]
    unfinished: Sequence[tuple[Path, int]]
    rules_problem: str = ""


class BookDoctor:
    """A reader of this machine's book, which can remove the files of dead processes: its user's; for root, all."""

    def __init__(
        self,
        *,
        find: Callable[[], Place] = find_place,
        list_folders: Callable[[], Sequence[Path]] = list_places,
        rules: RulesReader | None = None,
        uid: int | None = None,
        find_use: Callable[[Sequence[Held]], list[Finding]] = find_outside_use,
        lock_deadline_s: float = DEADLINE_S,
    ) -> None:
        self._uid = os.getuid() if uid is None else uid
        self._find = find
        self._list_folders = list_folders
        self._rules = rules or RulesReader()
        self._find_use = find_use
        self._lock_deadline_s = lock_deadline_s
        self._book = MachineBook("doctor", cpus=0, memory_bytes=0, find=find, list_folders=list_folders)

    def find_problems(self, *, fix: bool = False) -> list[Finding]:
        """Return all findings; with `fix`, first a finding for each repair."""
        fixed = self._fix(self._read()) if fix else []
        state = self._read()
        found = [*_describe_way(state.place), *_report_rules(state), *self._report_lock(state)]
        found += self._report_strangers(state)
        found += _report_two_folders(state)
        found += _report_future(state.counted)
        return [*fixed, *found, *self._find_use(state.counted)]

    def _read(self) -> BookState:
        rules, problem = MachineRules(), ""
        try:
            rules = self._rules.current()
        except BadRules as bad:
            problem = str(bad)
        counted, strangers = self._book.read_all(rules)
        folders = self._list_folders()
        return BookState(
            place=self._find(),
            folders=folders,
            counted=counted,
            strangers=strangers,
            unfinished=[each for folder in folders for each in find_unfinished(folder)],
            rules_problem=problem,
        )

    def _may_remove(self, uid: int) -> bool:
        return self._uid in (0, uid)

    # Repairs

    def _fix(self, state: BookState) -> list[Finding]:
        found: list[Finding] = []
        for folder in state.folders:
            dead = [
                each
                for each in state.strangers
                if each.path.parent == folder and each.reason == LEFT_BEHIND and self._may_remove(each.uid)
            ]
            if dead:
                found.append(self._remove_promises(folder, dead))
            unfinished = [
                path for path, uid in state.unfinished if path.parent == folder and self._may_remove(uid)
            ]
            if unfinished:
                found.append(_remove_files(folder, unfinished))
        return found

    def _remove_promises(self, folder: Path, dead: Sequence[Stranger]) -> Finding:
        what = f"{format_count(len(dead), 'promise')} in {folder} {_be(dead)} {_LEFT}"
        try:
            lock = FolderLock(folder)
        except OSError as problem:
            return _report_failure(what, problem)
        try:
            if not asyncio.run(lock.take(self._lock_deadline_s)):
                do = "try again: another process holds the lock on the folder"
                return {"level": "error", "what": what, "do": do}
            removed = sum(remove_dead(each.path, each.uid) for each in dead)
        except OSError as problem:
            return _report_failure(what, problem)
        finally:
            lock.close()
        return {"level": "fixed", "what": what, "do": "", "fix": f"{format_count(removed, 'file')} removed"}

    # Findings

    def _report_lock(self, state: BookState) -> Iterator[Finding]:
        folder = state.place.folder
        if folder is None:
            return
        try:
            lock = FolderLock(folder)
        except OSError as problem:
            do = "make it a folder that all users can read and write"
            yield {"level": "error", "what": f"{folder} cannot be locked: {problem.strerror}", "do": do}
            return
        try:
            if not asyncio.run(lock.take(self._lock_deadline_s)):
                holders = ", ".join(find_holders(folder)) or "a process that cannot be seen"
                what = f"the lock on {folder} is held for more than {self._lock_deadline_s:g} s by {holders}"
                do = "end that process: until then, each start waits this long"
                yield {"level": "warning", "what": what, "do": do}
        finally:
            lock.close()

    def _report_strangers(self, state: BookState) -> list[Finding]:
        """Return findings about files that do not count: one for each user and kind, but at most `_MOST_LINES`."""
        groups: dict[tuple[int, str], list[Stranger]] = {}
        strangers = [*state.strangers, *self._list_foreign(state.place)]
        strangers += [Stranger(path, uid, _UNFINISHED) for path, uid in state.unfinished]
        for each in strangers:
            groups.setdefault((each.uid, _name_kind(each)), []).append(each)
        ranked = [self._describe_group(uid, kind, group) for (uid, kind), group in groups.items()]
        ranked.sort(key=lambda pair: pair[0])
        found = [finding for _, finding in ranked[: _MOST_LINES - (len(ranked) > _MOST_LINES)]]
        if rest := ranked[len(found) :]:
            what = f"{len(rest)} more groups of files in the machine's book do not count"
            found.append({"level": "ok", "what": what, "do": ""})
        return found

    def _list_foreign(self, place: Place) -> list[Stranger]:
        """Return the entries of root's folder that no roost has made. Other folders belong to all programs."""
        if place.way != "installed" or place.folder is None:
            return []
        return [Stranger(path, uid, "is no promise") for path, uid in find_foreign(place.folder)]

    def _describe_group(self, uid: int, kind: str, group: Sequence[Stranger]) -> tuple[int, Finding]:
        """Return a finding about files of one user, and its rank: 0 for files that this user can remove."""
        first = group[0]
        noun = "promise" if kind in (LEFT_BEHIND, OF_OTHER_CONTAINER, ABOVE_LIMIT) else "file"
        whose = f"{format_count(len(group), noun)} of the user with uid {uid} in {first.path.parent}"
        if kind in (LEFT_BEHIND, _UNFINISHED):
            left = _LEFT if kind == LEFT_BEHIND else f"{_LEFT} while they were written"
            what = f"{whose} {_be(group)} {left}"
            if self._may_remove(uid):
                fix = f"{'it is' if len(group) == 1 else 'they are'} removed"
                return 0, {"level": "warning", "what": what, "do": _FIX, "fix": fix}
            return 4, {"level": "ok", "what": f"{what}, and {_do(group)} not count", "do": ""}
        if kind == OF_OTHER_CONTAINER:
            made = "was made" if len(group) == 1 else "were made"
            what = f"{whose} {made} in another container, and {_do(group)} not count"
            do = "do not mount this folder into containers: limit each container by its own means"
            return 2, {"level": "warning", "what": what, "do": do}
        if kind == ABOVE_LIMIT:
            what = f"{whose} {_do(group)} not count: with {_them(group)}, the user claims more than the limits allow"
            return 3, {"level": "warning", "what": what, "do": "ask that user, or raise the limit"}
        what = f"{whose} {_do(group)} not count: {show_path(first.path.name)} {first.reason}"
        do = "remove what is not roost's" if self._may_remove(uid) else "ask that user or root to remove this"
        return 1, {"level": "warning", "what": what, "do": do}


_LEFT = "left by processes that have ended"
_UNFINISHED = "is unfinished"


def find_problems(*, fix: bool = False) -> list[Finding]:
    """Return the findings about the book of this machine, for `roost doctor`."""
    return BookDoctor().find_problems(fix=fix)


def _describe_way(place: Place) -> list[Finding]:
    folder, divide = place.folder, "the agents of all users divide this machine through"
    keeps = "no user can remove the promises of another"
    if place.way == "installed":
        what = f"{divide} {folder}, which root has made: {keeps}, and ROOST_MACHINE_DIR does not count"
    elif place.way == "shared":
        what = f"{divide} {folder}, a folder of the system: {keeps}, but ROOST_MACHINE_DIR leads out of it"
    elif place.way == "chosen":
        what = f"agents with ROOST_MACHINE_DIR={folder} divide this machine among themselves: others do not count"
    else:
        what = f"nobody divides this machine between its users: {place.why}"
        do = f"if others use roost here, run {write_root_command('machine install')}"
        return [{"level": "warning", "what": what, "do": do}]
    found: list[Finding] = [{"level": "ok", "what": what, "do": ""}]
    if place.way == "shared" and place.why:
        found.append(
            {"level": "warning", "what": place.why, "do": f"run {write_root_command('machine install')}"}
        )
    return found


def _report_rules(state: BookState) -> Iterator[Finding]:
    if state.rules_problem:
        do = "correct it as root: until then, no kernel starts that asks for CPUs, memory or GPUs"
        yield {"level": "error", "what": state.rules_problem, "do": do}


def _report_two_folders(state: BookState) -> Iterator[Finding]:
    counts: dict[Path, int] = {}
    for each in state.counted:
        counts[each.path.parent] = counts.get(each.path.parent, 0) + 1
    if len(counts) > 1:
        parts = [f"{count} in {folder}" for folder, count in counts.items()]
        what = f"promises are in {len(counts)} folders, and count in each: {', '.join(parts)}"
        do = f"nothing: new ones go to {state.place.folder}, and old ones end with their kernels"
        yield {"level": "warning", "what": what, "do": do}


def _report_future(counted: Iterable[Held]) -> Iterator[Finding]:
    now = time.time()
    ahead = [each for each in counted if each.promise.since > now + _AHEAD_S]
    if ahead:
        most = max(each.promise.since for each in ahead) - now
        uids = ", ".join(str(uid) for uid in sorted({each.uid for each in ahead})[:_MOST_LINES])
        whose = f"{format_count(len(ahead), 'promise')} of uid {uids}"
        what = f"{whose} {_have(ahead)} a time up to {format_age(most)} ahead"
        do = "look at the clock, which was set back or has jumped. Only the order of promises depends on it"
        yield {"level": "warning", "what": what, "do": do}


def _remove_files(folder: Path, paths: Sequence[Path]) -> Finding:
    what = f"{format_count(len(paths), 'file')} in {folder} {_be(paths)} {_LEFT} while they were written"
    try:
        for path in paths:
            path.unlink(missing_ok=True)
    except OSError as problem:
        return _report_failure(what, problem)
    return {"level": "fixed", "what": what, "do": "", "fix": f"{format_count(len(paths), 'file')} removed"}


def _report_failure(what: str, problem: OSError) -> Finding:
    return {"level": "error", "what": what, "do": f"it cannot be repaired: {problem.strerror}"}


def _name_kind(stranger: Stranger) -> str:
    known = (LEFT_BEHIND, OF_OTHER_CONTAINER, ABOVE_LIMIT, _UNFINISHED)
    return stranger.reason if stranger.reason in known else ""


def _be(things: Sequence[object]) -> str:
    return "is" if len(things) == 1 else "are"


def _do(things: Sequence[object]) -> str:
    return "does" if len(things) == 1 else "do"


def _have(things: Sequence[object]) -> str:
    return "has" if len(things) == 1 else "have"


def _them(things: Sequence[object]) -> str:
    return "it" if len(things) == 1 else "them"
