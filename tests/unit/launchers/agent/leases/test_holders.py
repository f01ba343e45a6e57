"""The other holders of this machine: names come from uids, and times are never later than now."""

from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from roost.launchers.agent.leases.holders import list_holders
from roost.launchers.machine_book.folder_reader import Held
from roost.launchers.machine_book.promise import NamedProcess, Promise
from roost.launchers.protocol.messages import Holder

ROOT, UNKNOWN = 0, 987_654_321


def held(uid: int, **fields: Any) -> Held:
    agent = NamedProcess(pid=1, started_at=1.0)
    return Held(uid, Path("/nowhere"), Promise(name="mallory", agent=agent, **fields))


def test_holders_are_listed_from_the_oldest() -> None:
    first = held(ROOT, since=5.0, cpus=2.0, memory_bytes=7, devices={"GPU-1": 0.5})
    listed = list_holders([held(UNKNOWN, since=6.0), first], shows_names=False, now=10.0, uid=1)
    assert listed[0] == Holder(since=5.0, cpus=2.0, memory_bytes=7, devices={"GPU-1": 0.5})
    assert listed[1] == Holder(since=6.0)
    assert [listed[0].holds(each) for each in ("cpus", "memory", "gpus")] == [True, True, True]
    assert [listed[1].holds(each) for each in ("cpus", "memory", "gpus")] == [False, False, False]


def test_names_are_shown_where_the_operator_allows_it() -> None:
    (root, unknown) = list_holders([held(ROOT), held(UNKNOWN)], shows_names=True, uid=1)
    assert (root.user, unknown.user) == ("root", f"uid {UNKNOWN}")
    assert not root.is_own


def test_the_own_name_is_always_shown() -> None:
    (own,) = list_holders([held(os.getuid())], shows_names=False)
    assert own.is_own
    assert own.user == pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.parametrize(("since", "shown"), [(11.0, 10.0), (1e300, 10.0), (-5.0, 0.0)])
def test_a_time_that_cannot_be_is_now_or_unknown(since: float, shown: float) -> None:
    (holder,) = list_holders([held(ROOT, since=since)], shows_names=False, now=10.0)
    assert holder.since == shown
