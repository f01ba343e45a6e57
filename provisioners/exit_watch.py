"""Waits for the end of a kernel: one thread receives the event, and any event loop can wait for it.

The same thread receives the reports about what a queued start waits for.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from roost.scheduler.client.client import Call, Client
from roost.scheduler.errors import RoostError, UnknownKernel
from roost.scheduler.messages import Event, Kernel

UNKNOWN_EXIT_CODE = 255
"""Exit code of a kernel that ended without a known exit code."""


class KernelExit:
    """The exit code of one launch.

    `code` is None until the kernel has ended, and does not change afterwards.
    """

    def __init__(self, launch_id: str = "") -> None:
        self.launch_id = launch_id
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self.code: int | None = None

    def set(self, code: int | None) -> None:
        """Set the exit code and wake all waiters. Keep a code that is set already.

        None stands for an unknown code and sets `UNKNOWN_EXIT_CODE`. Any thread may call this.
        """
        with self._lock:
            if self.code is None:
                self.code = UNKNOWN_EXIT_CODE if code is None else code
            waiting = list(self._waiting.items())
        for woken, loop in waiting:
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(woken.set)

    async def wait(self, timeout_s: float | None = None) -> int | None:
        """Return the code as soon as it is set, or None after `timeout_s`."""
        woken = asyncio.Event()
        with self._lock:
            if self.code is not None:
                return self.code
            self._waiting[woken] = asyncio.get_running_loop()
        try:
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(woken.wait(), timeout_s)
        finally:
            with self._lock:
                self._waiting.pop(woken, None)
        return self.code


class ExitWatch:
    """A watch that records, on the client's thread, how each launch of one kernel ends.

    `current` is the exit of the latest launch. A new launch replaces it, so read it once per method.
    """

    def __init__(
        self,
        log: logging.Logger | logging.LoggerAdapter[Any],
        is_expected: Callable[[], bool],
        on_waiting: Callable[[Kernel], None] = lambda _: None,
    ) -> None:
        self.current = KernelExit()
        self.is_launching = False
        self._lock = threading.Lock()
        self._reported: Kernel | None = None
        """The ended kernel, if its end was reported during the launch and no later event contradicts this."""
        self.last_reason = ""
        """The reason of the kernel's latest end, as `roost kernels` shows it."""
        self.was_stopped = False
        """True if somebody stopped the kernel at its latest end, or roost culled it."""
        self.prospect = ""
        """What will end the kernel soon, as far as the service has told; see `Kernel.prospect`."""
        self.excesses = 0
        """How many launches in a row, up to the latest one, have run out of memory."""
        self._log = log
        self._is_expected = is_expected
        self._on_waiting = on_waiting
        self._kernel_id = ""
        self._unlisten: weakref.finalize[[], ExitWatch] | None = None

    def begin(self, kernel_id: str, launch_id: str) -> KernelExit:
        self._kernel_id = kernel_id
        self.prospect = ""
        self.current = KernelExit(launch_id)
        return self.current

    def resume(self, client: Client, earlier: KernelExit) -> None:
        """Watch an earlier launch again, because nobody knows whether its kernel has ended."""
        self.current = earlier
        self._read_again(client, earlier)

    def begin_launch(self) -> None:
        """Note that a launch is under way. If its lease is lost, the launch may go on with another lease."""
        self.is_launching, self._reported = True, None

    def finish_launch(self) -> Kernel | None:
        """Note that the launch is over.

        Return the ended kernel if its end was reported meanwhile, else None.
        """
        with self._lock:
            self.is_launching, reported, self._reported = False, self._reported, None
        return reported

    def follow(self, client: Client) -> None:
        """Listen to the kernel's events of `client` while this object lives. May be repeated."""
        if self._unlisten is not None:
            return
        me = weakref.ref(self)

        def on_event(event: Event) -> None:
            if (exits := me()) is not None:
                exits._on_event(client, event)

        self._unlisten = weakref.finalize(self, client.listen(on_event, kernel_id=self._kernel_id))
        self._unlisten.atexit = False

    def unfollow(self) -> None:
        if self._unlisten is not None:
            self._unlisten()
            self._unlisten = None

    def mark_unknown(self, ending: KernelExit) -> None:
        self._end(ending, None, "it ended while no service of roost was running, so nobody saw the cause")

    def read(self, ending: KernelExit, kernel: Kernel) -> None:
        """Note the prospect of `kernel`, as the service describes it, and its exit code if it has ended."""
        if kernel.launch_id == ending.launch_id:
            self.prospect = kernel.prospect
        if kernel.launch_id == ending.launch_id and kernel.state == "exited":
            self.was_stopped = kernel.is_stopped
            self._end(
                ending, kernel.exit_code, kernel.reason, kernel.log_tail, is_excess=kernel.is_out_of_memory
            )

    def _on_event(self, client: Client, event: Event) -> None:
        ending = self.current
        if event.kernel is not None:
            if event.kind == "warned":
                self._log.warning("kernel=%s %s", self._kernel_id, event.detail)
            with self._lock:
                is_launching = self.is_launching and event.kernel.launch_id == ending.launch_id
                if is_launching:
                    self._reported = event.kernel if event.kernel.state == "exited" else None
            if is_launching:
                self._on_waiting(event.kernel)
            else:
                self.read(ending, event.kernel)
        elif event.kind == "resync" and not self.is_launching and ending.code is None:
            self._read_again(client, ending)

    def _read_again(self, client: Client, ending: KernelExit) -> None:
        client.kernel(self._kernel_id).add_done_callback(lambda call: self._on_read_again(call, ending))

    def _on_read_again(self, call: Call[Kernel], ending: KernelExit) -> None:
        if ending is not self.current or self.is_launching:
            return
        try:
            self.read(ending, call.result(0))
        except UnknownKernel:
            self.mark_unknown(ending)
        except RoostError as problem:
            self._log.warning("kernel=%s is taken to run, its state is unknown: %s", self._kernel_id, problem)

    def _end(
        self,
        ending: KernelExit,
        code: int | None,
        reason: str,
        log_tail: str = "",
        *,
        is_excess: bool = False,
    ) -> None:
        if ending.code is not None:
            return
        self.excesses = self.excesses + 1 if is_excess else 0
        self.last_reason = reason or "nobody knows why"
        shown = UNKNOWN_EXIT_CODE if code is None else code
        if self._is_expected():
            self._log.debug("kernel=%s ended with exit code %s", self._kernel_id, shown)
        else:
            tail = f"; its log ends with:\n{log_tail.rstrip()}" if log_tail.strip() else ""
            why = f"({reason or 'no reason known'}){tail}"
            self._log.warning("kernel=%s ended with exit code %s %s", self._kernel_id, shown, why)
        ending.set(code)


def describe_wait(kernel: Kernel) -> str:
    """Return what the start or the adoption of a kernel waits for, as a sentence."""
    if kernel.state == "unknown":
        return f"The kernel on {kernel.node_id or 'its node'} is out of reach: nobody knows whether it runs."
    if kernel.state != "queued":
        return f"Starting on {kernel.node_id}." if kernel.node_id else "Starting."
    why = kernel.waits_for.rstrip(".")
    reason = (f": {why}" if why else "") + ("" if why.endswith("?") else ".")
    if kernel.is_pending:
        return f"Waiting for the cluster{reason}"
    return f"Position {kernel.position or 1} in the queue{reason}"
