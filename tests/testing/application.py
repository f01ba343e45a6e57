"""Jupyter applications for tests: they start kernels through roost, with jupyter_client."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import zmq
from jupyter_client.manager import AsyncKernelManager
from traitlets.config import Config, LoggingConfigurable

from roost.launchers.daemon.process import is_running, start_time
from roost.provisioners.journal_reader import read_runs
from roost.scheduler.client.client import connect
from roost.scheduler.client.this_owner import this_owner
from roost.scheduler.errors import BackendUnavailable, RoostError
from roost.scheduler.messages import Event, Kernel

from .deadlines import allow_s, until
from .kernelspecs import IPYKERNEL, write_ipykernel_spec
from .leftovers import await_end
from .live_kernel import LiveKernel, within

ASKED, FOREIGN, SPEC = "SUITE_ASKED", "SUITE_FOREIGN", "SUITE_SPEC"
"""Variables of an application that its kernelspec asks for and does not ask for, and a variable of the kernelspec."""
Promised = Mapping[str, tuple[float, ...]]
"""The CPUs, the bytes of memory and the GPUs that nodes promise, by node id."""
_NAME = "suite"
_LOOK_S = 1.0
"""How long a condition waits for an event before it is checked again."""


class _Adopter(LoggingConfigurable):
    """The parent of a kernel manager that adopts a kernel, as Jupyter Server's is with roost's extension (`Holder`)."""

    queue_timeout_s = 60.0
    server_name = ""
    adopting: set[str]

    def find_client(self, kernel_id: str, backend: str) -> None:
        """Return None: the kernels are the application's own."""

    def note_waiting(self, kernel_id: str) -> None:
        """Ignore it: an adopted kernel does not wait."""


class Application:
    """An application with kernels of one kernelspec, on the service of a backend. `config` is the kernelspec's.

    `python` is the command of the kernels' Python. A start may take `start_s`, and an answer `answer_s`. JSON can hold
    the arguments.
    """

    def __init__(
        self,
        *,
        folder: str,
        backend: str,
        options: Mapping[str, Any],
        python: str,
        config: Mapping[str, Any],
        start_s: float,
        answer_s: float,
    ) -> None:
        self.arguments = {
            "folder": folder,
            "backend": backend,
            "options": dict(options),
            "python": python,
            "config": dict(config),
            "start_s": start_s,
            "answer_s": answer_s,
        }
        self.service = connect(backend, **options)
        self._folder = Path(folder)
        self._start_s, self._answer_s = start_s, answer_s
        self._specs = write_ipykernel_spec(
            self._folder,
            _NAME,
            backend=backend,
            config={"environment": [ASKED], "launch_timeout": allow_s(start_s), **config},
            argv=[python, *IPYKERNEL[1:]],
            env={SPEC: "spec"},
        )
        self._config = Config({"RoostProvisioner": {"backend_options": dict(options)}})
        self._kernels: list[LiveKernel] = []

    async def start(self, **options: Any) -> LiveKernel:
        """Start a kernel, and wait until it answers."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("KERNEL_")}
        manager = AsyncKernelManager(
            kernel_name=_NAME,
            kernel_spec_manager=self._specs,
            connection_file=str(self._folder / f"{uuid.uuid4().hex}.json"),
            config=self._config,
            parent=options.pop("parent", None),
        )
        kernel = LiveKernel(manager, self._answer_s)
        self._kernels.append(kernel)
        starting = manager.start_kernel(env={**own, ASKED: "asked", FOREIGN: "foreign"}, **options)
        await within(starting, self._start_s + self._answer_s, "waiting for a kernel's start")
        await kernel.connect()
        return kernel

    async def adopt(self, kernel_id: str) -> LiveKernel:
        """Adopt a kernel of another application, and wait until it answers."""
        adopter = _Adopter(config=self._config)
        adopter.adopting = {kernel_id}
        return await self.start(parent=adopter, kernel_id=kernel_id)

    async def running(self, kernel: LiveKernel) -> Kernel:
        """Wait until the service reports that the kernel runs, and return it as the service knows it."""
        found: list[Kernel] = []

        async def look() -> str:
            found[:] = [await self.service.kernel(kernel.id)]
            return "" if found[0].state in ("running", "exited") else f"the kernel is {found[0].state}"

        await self.until(look, self._answer_s)
        assert found[0].state == "running", f"the kernel has ended: {found[0].reason}"
        return found[0]

    async def kept_output(self, kernel: LiveKernel, code: str, expected: str) -> None:
        """Wait until the kernel's agent has this output of this code."""

        async def look() -> str:
            runs = [run for run in await read_runs(self.service, kernel.id) if run.code == code]
            texts = ["".join(output.get("text", "") for output in run.outputs) for run in runs]
            lengths = [len(text) for text in texts]
            return "" if texts == [expected] else f"it has {lengths} of {len(expected)} characters"

        await self.until(look, self._answer_s)

    async def promised(self) -> Promised:
        """Return what each node promises, by node id."""
        names = ("cpus_promised", "memory_promised_bytes", "gpus_promised")
        return {node["id"]: tuple(node[name] for name in names) for node in await self.service.nodes()}

    async def end_service(self, signum: int = signal.SIGKILL) -> None:
        """End the service by a signal, and wait until it has ended. The next call starts another one."""
        pid = int((await self.service.service())["pid"])
        process, started_at = psutil.Process(pid), start_time(pid)
        os.kill(pid, signum)
        await asyncio.to_thread(await_end, [process], self._answer_s)
        assert not is_running(pid, started_at), f"{self._answer_s:g} s after a signal, the service still runs"

    async def until(self, look: Callable[[], Awaitable[str]], within_s: float) -> None:
        """Wait until `look` returns no problem. It looks after each event of the service, and every second.

        The errors are those of `roost.testing.deadlines.until`, with the last problem.
        """
        loop, news, problem = asyncio.get_running_loop(), asyncio.Event(), ""

        def wake(_: Event) -> None:
            loop.call_soon_threadsafe(news.set)

        stop = self.service.listen(wake)

        async def is_solved() -> bool:
            nonlocal problem
            news.clear()
            try:
                problem = await look()
            except BackendUnavailable as away:
                problem = str(away)
            if problem:
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(news.wait(), _LOOK_S)
            return not problem

        try:
            await until(is_solved, lambda: problem, within_s, 0.0)
        finally:
            stop()

    async def close(self) -> None:
        """Stop all kernels, also those of other applications, and disconnect from the service."""
        for kernel in self._kernels:
            with suppress(RoostError, AssertionError, RuntimeError, zmq.ZMQError):
                await kernel.shut_down()
        with suppress(RoostError, asyncio.TimeoutError):
            for left in await self.service.kernels().within(allow_s(self._answer_s)):
                await self.service.stop(left.id, 0.0).within(allow_s(self._answer_s))
        await asyncio.to_thread(self.service.close)


@asynccontextmanager
async def first_application(next_one: Application, code: str) -> AsyncIterator[str]:
    """Start a kernel in an application like `next_one`, in a process of its own, and run code in it.

    Yield the kernel's id when the code has printed a first line. The process is killed at the end.
    """
    arguments = {**next_one.arguments, "folder": f"{next_one.arguments['folder']}/first"}
    program = "from roost.testing.application import run_first; run_first()"
    command = (sys.executable, "-c", program, json.dumps(arguments), code)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        waits_s = next_one._start_s + 3 * next_one._answer_s
        line = await within(process.stdout.readline(), waits_s, "waiting for the first application")
        assert line, f"the first application failed: {(await process.stderr.read()).decode()[-500:]}"
        yield line.decode().strip()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def run_first() -> None:
    """Be the first application: print the kernel's id, and wait to be killed."""

    async def main() -> None:
        application = Application(**json.loads(sys.argv[1]))
        kernel = await application.start()
        await kernel.begin(sys.argv[2]).shows("\n")
        await application.service.adopt(
            kernel.id, this_owner(can_adopt=True)
        )  # the kernel outlives this process
        print(kernel.id, flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())
