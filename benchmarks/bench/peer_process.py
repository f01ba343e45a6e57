"""A process of its own for the kernels of another provisioner.

A provisioner may read its settings once in a process, and may work in the background there. Gateway Provisioners does
both: it blocks the event loop for 10 ms, again and again. In one process it would slow down the other sides.

The process reads a line for each turn, and answers with lines: `failed` for each kernel that did not answer, and at the
end `value` or `error`. Its event loop stands still between the turns.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict
from typing import Any

from jupyter_client.kernelspec import KernelSpecManager

from .report import Report
from .sides import Side
from .world import NEUTRAL, PLAIN, ROOST, RUNTIME, end_processes, read_provisioner

Turn = Callable[..., Awaitable[object]]
"""A coroutine function that measures a side, from a report, the side and other values. Its result has a JSON form."""


class PeerProcess:
    """The process in which the kernels of one side are measured. `process` runs `serve`."""

    def __init__(self, side: Side, process: asyncio.subprocess.Process) -> None:
        self.side = side
        self._process = process

    async def run(self, report: Report, turn: str, *values: object) -> Any:
        """Run a turn in the process and return its result. Count failed kernels in the report.

        Raise `RuntimeError` if the turn fails or the process ends.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([turn, *values]).encode() + b"\n")
        while line := await self._process.stdout.readline():
            answer = json.loads(line)
            if "value" in answer:
                return answer["value"]
            if "error" in answer:
                raise RuntimeError(f"{self.side.name}: {answer['error']}")
            report.count_failure(self.side.name, answer["failed"])
        raise RuntimeError(f"the process for the kernels of {self.side.name} has ended")


@asynccontextmanager
async def open_processes(sides: Sequence[Side], module: str) -> AsyncIterator[Mapping[str, PeerProcess]]:
    """Start a process for each side with another provisioner, and yield them by the side's name.

    The process is `python -m MODULE SIDE`, with the side as JSON. It is killed at the end, with all that it started.
    """
    specs = KernelSpecManager()
    async with AsyncExitStack() as stack:
        opened = {}
        for side in sides:
            if read_provisioner(specs.get_kernel_spec(side.kernelspec)) not in (PLAIN, ROOST):
                opened[side.name] = await stack.enter_async_context(_open_process(side, module))
        yield opened


@asynccontextmanager
async def _open_process(side: Side, module: str) -> AsyncIterator[PeerProcess]:
    runtime_dir = f"{os.environ[RUNTIME]}/{side.name}"  # marks the side's processes; nothing is stored there
    command = (sys.executable, "-m", module, json.dumps(asdict(side)))
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=NEUTRAL,
        env={**os.environ, **side.variables, RUNTIME: runtime_dir},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        yield PeerProcess(side, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await asyncio.to_thread(end_processes, runtime_dir)


class _PassedOn(Report):
    """A report that sends each failure to the process that compares the sides."""

    def __init__(self, side: Side, send: Callable[[str, object], None]) -> None:
        super().__init__(side.name)
        self._send = send

    def count_failure(self, side: str, what: str) -> None:
        self._send("failed", what)


def serve(side: Side, turns: Mapping[str, Turn]) -> None:
    """Run the turns that standard input names, and answer each, until standard input ends."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    with open(os.devnull, "w") as nowhere:  # the kernels have the same output
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(nowhere.fileno(), sys.stderr.fileno())

    def send(kind: str, what: object) -> None:
        answers.write(json.dumps({kind: what}) + "\n")

    asyncio.run(_serve(side, turns, send))


async def _serve(side: Side, turns: Mapping[str, Turn], send: Callable[[str, object], None]) -> None:
    report = _PassedOn(side, send)
    for line in sys.stdin:  # blocks the event loop, so that nothing runs during the turns of other sides
        name, *values = json.loads(line)
        try:
            kind, result = "value", await turns[name](report, side, *values)
        except Exception as error:  # noqa: BLE001 - the other process raises it
            kind, result = "error", f"{type(error).__name__}: {error}"
        # Gateway Provisioners leaves a process behind with each kernel that is killed.
        await asyncio.to_thread(end_processes, os.environ[RUNTIME])
        send(kind, result)
