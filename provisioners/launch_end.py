"""The end of one launch of another application's kernel, for a thread that also waits for the kernel's messages."""

from __future__ import annotations

import socket
from contextlib import suppress

from roost.scheduler.client.client import Call, Client
from roost.scheduler.errors import KernelDied, RoostError, UnknownKernel
from roost.scheduler.messages import Event, Kernel


def check_lives(kernel: Kernel) -> None:
    """Raise `KernelDied` if the kernel has ended."""
    if kernel.state == "exited":
        what = f"Kernel {kernel.id} has ended: {kernel.reason or 'no reason known'}."
        raise KernelDied(what, exit_code=kernel.exit_code, log_tail=kernel.log_tail)


class LaunchEnd:
    """Listens in a `with` statement for the end of a kernel's present launch. A restart ends the launch too.

    `with` raises `KernelDied` if the kernel has ended already.
    """

    def __init__(self, service: Client, kernel_id: str) -> None:
        self._service = service
        self._kernel_id = kernel_id
        self._problem: KernelDied | None = None
        self.launch_id = ""

    def __enter__(self) -> LaunchEnd:
        self.launch_id = self._read_kernel().launch_id
        self._reader, self._writer = socket.socketpair()
        self._stop_listening = self._service.listen(self._on_event, kernel_id=self._kernel_id)
        try:
            self._look(self._read_kernel())  # the launch may have ended before this object listened
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_listening()
        self._writer.close()
        self._reader.close()

    def fileno(self) -> int:
        """Return the file descriptor that becomes readable when the launch has ended."""
        return self._reader.fileno()

    def explain(self) -> KernelDied:
        """Return why the launch has ended. It must have ended."""
        assert self._problem is not None
        return self._problem

    def _read_kernel(self) -> Kernel:
        try:
            kernel = self._service.kernel(self._kernel_id).result()
        except UnknownKernel:
            raise self._lack_reason() from None
        check_lives(kernel)
        return kernel

    def _on_event(self, event: Event) -> None:
        if event.kernel is not None:
            self._look(event.kernel)
        elif event.kind == "resync":
            self._service.kernel(self._kernel_id).add_done_callback(self._on_read_again)

    def _on_read_again(self, call: Call[Kernel]) -> None:
        try:
            self._look(call.result(0))
        except UnknownKernel:
            self._end(self._lack_reason())
        except RoostError:  # the next event, or the next connection, shows the kernel's state
            pass

    def _look(self, kernel: Kernel) -> None:
        """End the launch if `kernel`, as the service describes it, shows that it has ended."""
        try:
            check_lives(kernel)
        except KernelDied as problem:
            self._end(problem)
        else:
            if kernel.launch_id != self.launch_id:
                self._end(KernelDied(f"Kernel {self._kernel_id} was restarted, which ended the code."))

    def _end(self, problem: KernelDied) -> None:
        if self._problem is None:
            self._problem = problem
            with suppress(OSError):  # closed: the program no longer waits
                self._writer.send(b"\0")

    def _lack_reason(self) -> KernelDied:
        return KernelDied(f"Kernel {self._kernel_id} has ended: no reason known.")
