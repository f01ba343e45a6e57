"""The phases of a kernel: the legal transitions, and the state that users see."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from kit.machine.cases import find_wrong
from roost.launchers.daemon.tasks import Timers
from roost.launchers.protocol.messages import Lease, Owner
from roost.placement.model import Request
from roost.scheduler.backends.lease_book import LeaseBook
from roost.scheduler.core.ended_kernels import EndedKernels
from roost.scheduler.core.events import EventStream
from roost.scheduler.core.kernel_record import _NEXT, _STATE, KernelRecord, Phase
from roost.scheduler.core.kernel_table import KernelTable
from roost.scheduler.core.queue import Queue

LEASE = Lease(
    id="l", kernel_id="k", owner=Owner(user="ada"), request=Request(), state="pending", reason="image"
)


def record(phase: Phase) -> KernelRecord:
    return KernelRecord(
        book=LeaseBook(),
        kernel_id="k",
        launch_id="1",
        owner=LEASE.owner,
        request=LEASE.request,
        created_at=0.0,
        phase=phase,
    )


def test_only_listed_transitions_are_possible() -> None:
    def check(transition: tuple[Phase, Phase]) -> None:
        before, after = transition
        kernel = record(before)
        if after is before or after in _NEXT[before]:
            kernel._go(after)
            assert kernel.phase is after
        else:
            with pytest.raises(RuntimeError, match=f"from {before.name} to {after.name}"):
                kernel._go(after)
            assert kernel.phase is before

    assert find_wrong(itertools.product(Phase, Phase), check) == []


def test_every_phase_has_a_state_and_an_end() -> None:
    assert set(_STATE) == set(_NEXT) == set(Phase)
    assert all(Phase.ENDING in _NEXT[phase] for phase in Phase if phase is not Phase.ENDING)


def test_a_pending_lease_counts_as_a_place_in_the_queue() -> None:
    queue = Queue(on_moved=lambda _: None, clock=lambda: 0.0, timers=Timers())
    kernel = record(Phase.QUEUED)
    kernel.claim(LEASE)
    kernel.book.show(LEASE)
    kernel.wait_for_manager()
    shown = kernel.view(queue)
    assert (shown.state, shown.position, shown.waits_for) == ("queued", 1, "image")


async def test_a_kernel_with_a_lease_waits_no_longer_for_what_it_was_queued_for() -> None:
    queue = Queue(on_moved=lambda _: None, clock=lambda: 0.0, timers=Timers())
    kernel = record(Phase.QUEUED)
    kernel.ticket = queue.join(kernel.kernel_id, "line")
    queue.explain(kernel.ticket, "no node has room")
    assert kernel.view(queue).waits_for == "no node has room"
    kernel.claim(LEASE)
    kernel.book.show(replace(LEASE, state="held", reason=""))
    assert kernel.view(queue).waits_for == ""


def test_a_record_is_found_by_its_lease() -> None:
    timers = Timers()
    queue = Queue(on_moved=lambda _: None, clock=lambda: 0.0, timers=timers)
    ended = EndedKernels(timers, None)
    table = KernelTable(queue, EventStream(), LeaseBook(), ended, name="ada@host:1")
    for kernel_id in ("k", "k:1", "k:1:2"):
        id_ = table.lease_id(kernel_id, "launch:1")
        found = table.add_found(
            Lease(id=id_, kernel_id=kernel_id, owner=LEASE.owner, request=LEASE.request), is_known=True
        )
        assert table.with_lease(id_) is found
        assert table.with_lease(f"{id_}0") is None, "that is another launch"
    assert table.with_lease("l") is None
    assert table.with_lease("") is None
