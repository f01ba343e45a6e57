"""Waiting for a kernel's end in several threads and event loops."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from roost.launchers.protocol.shared_values import OUT_OF_MEMORY
from roost.placement import Request
from roost.provisioners.exit_watch import UNKNOWN_EXIT_CODE, ExitWatch, KernelExit, describe_wait
from roost.scheduler.messages import Event, Kernel, KernelState, Owner
from roost.testing.deadlines import allow_s


def test_an_exit_code_is_set_once() -> None:
    ending = KernelExit()
    assert ending.code is None
    ending.set(-9)
    ending.set(0)
    assert ending.code == -9
    assert asyncio.run(ending.wait()) == -9


def test_an_unknown_code_is_still_an_end() -> None:
    ending = KernelExit()
    ending.set(None)
    assert ending.code == UNKNOWN_EXIT_CODE


def test_waiters_in_several_loops_are_woken() -> None:
    ending = KernelExit()
    begun = threading.Barrier(4)
    found: list[int | None] = []

    async def wait() -> None:
        waiting = asyncio.ensure_future(ending.wait())
        await asyncio.sleep(0)
        await asyncio.to_thread(begun.wait)
        found.append(await waiting)

    threads = [threading.Thread(target=lambda: asyncio.run(wait())) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait(allow_s(10))
    ending.set(3)
    for thread in threads:
        thread.join(allow_s(60))
    assert found == [3, 3, 3]


def test_a_wait_after_its_timeout_leaves_no_waiter() -> None:
    ending = KernelExit()
    assert asyncio.run(ending.wait(0.01)) is None
    assert not ending._waiting
    ending.set(0)


def test_a_closed_loop_does_not_disturb_the_others() -> None:
    ending = KernelExit()
    loop = asyncio.new_event_loop()
    ending._waiting[asyncio.Event()] = loop
    loop.close()
    ending.set(1)
    assert ending.code == 1


def test_a_warning_is_written_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    listeners: dict[str, Callable[[Event], None]] = {}

    def listen(listener: Callable[[Event], None], kernel_id: str) -> Callable[[], None]:
        listeners[kernel_id] = listener
        return listeners.clear

    client = SimpleNamespace(listen=listen)
    watch = ExitWatch(logging.getLogger("test"), lambda: False)
    watch.begin("k1", "l1")
    watch.follow(client)  # type: ignore[arg-type]
    kernel = Kernel(id="k1", launch_id="l1", state="running", owner=Owner(user="ada"), request=Request())
    listeners["k1"](Event(kind="warned", at=0.0, kernel=kernel, detail="save your work"))
    assert [record.getMessage() for record in caplog.records] == ["kernel=k1 save your work"]
    assert watch.current.code is None


def test_the_end_of_a_whole_container_for_its_memory_counts() -> None:
    watch = ExitWatch(logging.getLogger("test"), lambda: False)
    for reason, excesses in (
        (f"its lease is lost: {OUT_OF_MEMORY}", 1),
        (f"its lease is lost: {OUT_OF_MEMORY}: YARN limits virtual memory", 2),
        ("its lease is lost: its node evicted it", 0),
    ):
        kernel = Kernel(
            id="k", launch_id="l", state="exited", owner=Owner(user="ada"), request=Request(), reason=reason
        )
        watch.read(watch.begin("k", "l"), kernel)
        assert watch.excesses == excesses


@pytest.mark.parametrize(
    ("states", "ends"),
    [
        (("queued", "exited", "queued", "running"), False),  # the first lease was lost, and another one taken
        (("queued", "running", "exited"), True),  # its end overtakes the answer of the launch
    ],
)
def test_an_end_counts_if_the_launch_does_not_go_on(states: tuple[KernelState, ...], ends: bool) -> None:
    listeners: list[Callable[[Event], None]] = []

    def listen(listener: Callable[[Event], None], kernel_id: str) -> Callable[[], None]:
        listeners.append(listener)
        return listeners.clear

    watch = ExitWatch(logging.getLogger("test"), lambda: False)
    ending = watch.begin("k", "l")
    watch.begin_launch()
    watch.follow(SimpleNamespace(listen=listen))  # type: ignore[arg-type]
    for state in states:
        kernel = Kernel(id="k", launch_id="l", state=state, owner=Owner(user="ada"), request=Request())
        listeners[0](Event(kind="any", at=0.0, kernel=kernel, detail=""))
    ended = watch.finish_launch()
    assert (ended is not None) is ends
    assert ending.code is None, "the answer of the launch comes first"
    if ended is not None:
        watch.read(ending, ended)
        assert ending.code is not None


@pytest.mark.parametrize(
    ("waits_for", "told"),
    [
        ("", "Position 2 in the queue."),
        ("no node has room.", "Position 2 in the queue: no node has room."),
        (
            "there is no cluster: is it just starting?.",
            "Position 2 in the queue: there is no cluster: is it just starting?",
        ),
    ],
)
def test_a_wait_is_told_as_one_sentence(waits_for: str, told: str) -> None:
    kernel = Kernel(
        id="k",
        launch_id="1",
        state="queued",
        owner=Owner(user="ada"),
        request=Request(),
        position=2,
        waits_for=waits_for,
    )
    assert describe_wait(kernel) == told
