"""A kernel with its manager and a client, for tests of a kernel's life. Every wait has a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

from jupyter_client.manager import AsyncKernelManager

from .deadlines import allow_s

_CONNECT_S = 5.0
"""How long a connection may take. An address without a machine does not answer at all."""

T = TypeVar("T")


class Cell:
    """Code that a kernel runs. `text` is the text that the code has printed so far."""

    def __init__(self, kernel: LiveKernel, code: str) -> None:
        self.text = ""
        self._kernel = kernel
        self._news = asyncio.Event()
        options = {"store_history": False, "allow_stdin": False, "stop_on_error": False}
        work = kernel.client.execute_interactive(code, output_hook=self._add, **options)
        self._work: asyncio.Future[Any] = asyncio.ensure_future(work)
        self._work.add_done_callback(lambda _: self._news.set())

    def _add(self, message: Mapping[str, Any]) -> None:
        self.text += message["content"].get("text", "")
        self._news.set()

    async def shows(self, text: str) -> None:
        """Wait until the code has printed this text. Raise `AssertionError` if it ends without it."""

        async def look() -> None:
            while text not in self.text:
                assert not self._work.done(), (
                    f"the code ended with {await self.ends()!r} and printed no {text!r}"
                )
                self._news.clear()
                await self._news.wait()

        await self._kernel.unless_it_ends(look(), f"waiting for the output {text!r}")

    async def ends(self) -> str:
        """Wait until the code has ended. Return the name of its error; empty if it has none."""
        reply = await self._kernel.unless_it_ends(self._work, "waiting for the reply to a cell")
        return str(reply["content"].get("ename", ""))

    def cancel(self) -> asyncio.Future[Any]:
        """Stop waiting for the reply, and return the cancelled wait. The code goes on."""
        self._work.cancel()
        return self._work


class LiveKernel:
    """A kernel, its kernel manager, and a client that is connected to it.

    A method raises `AssertionError` if the kernel ends meanwhile, or after `answer_s`.
    """

    def __init__(self, manager: AsyncKernelManager, answer_s: float) -> None:
        self.manager = manager
        self.client: Any = None
        self._answer_s = answer_s
        self._cells: list[Cell] = []

    @property
    def id(self) -> str:
        return str(self.manager.kernel_id)

    @property
    def address(self) -> tuple[str, int]:
        """The address at which the kernel listens for cells."""
        return self.manager.ip, self.manager.shell_port

    async def connect(self) -> None:
        """Connect a new client, and wait until the kernel answers it."""
        await self.disconnect()
        self.client = self.manager.client()
        self.client.start_channels(hb=False)
        await self._answers()

    async def disconnect(self) -> None:
        """Stop waiting for cells, and disconnect the client."""
        await self._forget_cells()
        if self.client is not None:
            self.client.stop_channels()

    def begin(self, code: str) -> Cell:
        """Send code to the kernel, and return at once."""
        self._cells.append(Cell(self, code))
        return self._cells[-1]

    async def run(self, code: str) -> str:
        """Run code and return the text that it prints. Raise `AssertionError` if it fails."""
        cell = self.begin(code)
        error = await cell.ends()
        assert not error, f"{code!r} raised {error}"
        return cell.text.strip()

    async def interrupt(self) -> None:
        """Interrupt the code that the kernel runs."""
        await within(self.manager.interrupt_kernel(), self._answer_s, "waiting for an interrupt")

    async def restart(self, *, now: bool = True) -> None:
        """Restart the kernel, and wait until it answers. The connected client stays."""
        await self._forget_cells()
        await within(self.manager.restart_kernel(now=now), self._answer_s, "waiting for a restart")
        await self._answers()

    async def ends(self) -> int:
        """Wait until the kernel has ended, and return its exit code."""
        return int(await within(self._end(), self._answer_s, "waiting for the kernel's end"))

    async def shut_down(self) -> None:
        """Shut the kernel down. May be repeated."""
        await self.disconnect()
        if self.manager.has_kernel:
            await within(self.manager.shutdown_kernel(), self._answer_s, "waiting for a shutdown")

    async def unless_it_ends(self, work: Awaitable[T], doing: str) -> T:
        """Return the result of `work`, unless the kernel ends first."""
        task, end = asyncio.ensure_future(work), asyncio.ensure_future(self._end())
        try:
            await asyncio.wait(
                (task, end), timeout=allow_s(self._answer_s), return_when=asyncio.FIRST_COMPLETED
            )
            if task.done():
                return task.result()
            assert not end.done(), f"the kernel ended with exit code {end.result()} while {doing}"
            raise AssertionError(f"more than {self._answer_s:g} s passed while {doing}")
        finally:
            for each in (task, end):
                each.cancel()
            await asyncio.gather(task, end, return_exceptions=True)

    async def _answers(self) -> None:
        await self.unless_it_ends(
            self.client.wait_for_ready(allow_s(self._answer_s)), "waiting for its first answer"
        )

    async def _end(self) -> int:
        return int(await self.manager.provisioner.wait() or 0)  # type: ignore[union-attr]

    async def _forget_cells(self) -> None:
        cells = [cell.cancel() for cell in self._cells]
        self._cells.clear()
        await asyncio.gather(*cells, return_exceptions=True)


async def within(work: Awaitable[T], within_s: float, doing: str) -> T:
    """Return the result of `work`. Raise `AssertionError` after `within_s`."""
    try:
        return await asyncio.wait_for(work, allow_s(within_s))
    except asyncio.TimeoutError:
        raise AssertionError(f"more than {within_s:g} s passed while {doing}") from None


async def is_open(address: tuple[str, int], *, until_closed: bool = False) -> bool:
    """True if a process listens at this address. With `until_closed`, wait until none does."""
    while True:
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(*address), allow_s(_CONNECT_S))
        except (OSError, asyncio.TimeoutError):
            return False
        try:
            if not until_closed:
                return True
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(
                    reader.read(), allow_s(_CONNECT_S)
                )  # the connection ends with the process
        finally:
            writer.close()
