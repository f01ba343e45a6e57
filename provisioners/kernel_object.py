"""Kernels as Python objects, for programs: `roost.start_kernel`.

An `AsyncKernel` uses jupyter_client's AsyncKernelManager, as every Jupyter application does. A `BlockingKernel` runs
an `AsyncKernel` in an event loop on another thread. Any thread may call it, also a thread with an event loop.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import uuid
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar, cast

import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.manager import AsyncKernelManager

from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.errors import ConfigError, KernelDied, LaunchTimeout, RoostError
from roost.scheduler.messages import Kernel

from .execution import Result, add_output, build_result
from .kernel_connection import accept_odd_messages, find_context
from .placed_kernelspecs import build_manager
from .provisioner import RoostProvisioner
from .request_options import OPTIONS, check_names, read_seconds

_OPTIONS = (name for name in OPTIONS if name != "launch_timeout")
_ARGUMENTS = ("kernel_name", "env", "cwd", "timeout_s", *_OPTIONS)
_ANSWER_S = 60.0
"""How long a launched kernel may take to answer."""
_ASK_AGAIN_S = 0.1
"""How long a client waits for an answer before it asks again. The kernel's first answers may be lost."""

P = ParamSpec("P")
T = TypeVar("T")


class _KernelFacts:
    """The facts about the latest launch of a kernel."""

    def __init__(self, manager: AsyncKernelManager) -> None:
        self._manager = manager

    @property
    def id(self) -> str:
        """The kernel's id, as in `roost kernels`."""
        return self._launched.id

    def __repr__(self) -> str:
        """Return the kernel's id and node, or that it is not started."""
        kernel = self._manager.provisioner and self._provisioner.kernel
        what = f"{kernel.id} on {kernel.node_id}" if kernel else "not started"
        return f"<{type(self).__name__} {what}>"

    @property
    def node_id(self) -> str:
        """The node on which the kernel runs."""
        return self._launched.node_id

    @property
    def device_ids(self) -> tuple[str, ...]:
        """The ids of the kernel's GPUs."""
        return self._launched.device_ids

    @property
    def timing_ms(self) -> Mapping[str, float]:
        """The milliseconds that each stage of the start took, by the name of the stage."""
        return self._launched.timing_ms

    @property
    def decision(self) -> Mapping[str, Any]:
        """The decision that placed the kernel on its node, as `Decision.to_dict()`; empty if it is not known."""
        return self._launched.decision or {}

    @property
    def _provisioner(self) -> RoostProvisioner:
        return cast(RoostProvisioner, self._manager.provisioner)

    @property
    def _launched(self) -> Kernel:
        if self._manager.provisioner is None or self._provisioner.kernel is None:
            raise RuntimeError("The kernel is not started: in an event loop, use `await` or `async with`.")
        return self._provisioner.kernel


class AsyncKernel(_KernelFacts):
    """A kernel for one event loop. `await roost.start_kernel(...)` returns it."""

    def __init__(self, manager: AsyncKernelManager, cwd: str | None) -> None:
        super().__init__(manager)
        self._cwd = cwd
        self._clients: list[Any] = []  # the first is this object's own
        self._turn = asyncio.Lock()
        self._answered = ""  # the launch that has answered
        self._ending: asyncio.Task[None] | None = None

    async def start(self) -> AsyncKernel:
        """Start the kernel. If this fails or is cancelled, nothing stays behind."""
        if self._manager.provisioner is not None:
            raise RuntimeError("The kernel was started before.")
        # KERNEL_* variables belong to the kernel that this program may run in. They would override the arguments.
        env = {k: v for k, v in os.environ.items() if not k.startswith("KERNEL_") or k == "KERNEL_USERNAME"}
        try:
            await self._manager.start_kernel(env=env, cwd=self._cwd)
            self._connect()
            await self._wait_for_launch()
        except BaseException:
            await self.stop()
            raise
        return self

    async def execute(self, code: str, *, timeout_s: float | None = None, check: bool = False) -> Result:
        """Execute code and return its result. Concurrent calls run one after another.

        The result has the error that the code raised, if any; with `check`, this method raises that error.
        Raises `KernelDied` if the kernel ends. A timeout (`TimeoutError`) or a cancellation interrupts the
        code.
        """
        if timeout_s is not None:
            read_seconds("timeout_s", timeout_s)
        outputs: list[dict[str, Any]] = []
        async with self._turn:
            await self._wait_for_launch()
            # `stop_on_error` would make the kernel refuse the next code while an interrupt is under way.
            options = {"allow_stdin": False, "stop_on_error": False}
            hook = functools.partial(add_output, outputs)
            work = self._clients[0].execute_interactive(code, output_hook=hook, **options)
            late = TimeoutError(f"The code did not end within {timeout_s} s: it is interrupted.")
            try:
                reply = await self._unless_it_ends(work, timeout_s, late)
            except (asyncio.CancelledError, TimeoutError):
                with suppress(RoostError, RuntimeError):
                    await self.interrupt()
                raise
        result = build_result(outputs, reply["content"])
        if check and result.error is not None:
            raise result.error
        return result

    async def client(self) -> AsyncKernelClient:
        """Return a new jupyter_client that is connected to the kernel. It is closed when the kernel is stopped.

        Raises `KernelDied` if the kernel has ended.
        """
        await self.check_lives()
        client = self._connect()
        await self._wait_for_answer(client)
        return client

    async def check_lives(self) -> None:
        """Raise `KernelDied` if the kernel has ended."""
        if self._ending is not None or await self._provisioner.poll() is not None:
            raise await self._explain_end()

    async def interrupt(self) -> None:
        """Interrupt the code that the kernel executes. Raises `KernelDied` if the kernel was stopped."""
        if self._ending is not None:
            raise await self._explain_end()
        await self._manager.interrupt_kernel()

    async def restart(self) -> None:
        """Restart the kernel in its lease. Running code is interrupted.

        Raises `KernelDied` if the restart fails, or if the kernel was stopped.
        """
        if self._ending is not None:
            raise await self._explain_end()
        await self._manager.restart_kernel()
        async with self._turn:
            self._answered = ""  # a restart that fails has no new launch
            await self._wait_for_launch()

    async def stop(self) -> None:
        """Stop the kernel and give its lease back. May be repeated."""
        if self._ending is None:
            self._ending = asyncio.ensure_future(self._end())
        await asyncio.wait([self._ending])  # a cancelled caller leaves no kernel behind
        self._ending.result()

    async def _end(self) -> None:
        try:
            if self._manager.has_kernel:
                await self._manager.shutdown_kernel()
            else:
                await self._manager.cleanup_resources()
        finally:
            for client in self._clients:
                client.stop_channels()

    def _connect(self) -> AsyncKernelClient:
        client = self._manager.client(context=find_context(zmq.asyncio.Context))
        # A kernel takes two clients with one session for the same client.
        client.session.session = uuid.uuid4().hex
        accept_odd_messages(client)
        client.start_channels(hb=False)
        self._clients.append(client)
        return client

    async def _wait_for_launch(self) -> None:
        """Wait until the kernel of the latest launch answers.

        After a restart, the sockets connect again first.
        """
        launch_id = self._launched.launch_id
        if self._answered != launch_id:
            await self._wait_for_answer(self._clients[0])
            self._answered = launch_id

    async def _wait_for_answer(self, client: AsyncKernelClient) -> None:
        late = LaunchTimeout(f"The kernel did not answer within {_ANSWER_S:g} s.")
        await self._unless_it_ends(await_answer(client), _ANSWER_S, late)

    async def _unless_it_ends(
        self, work: Coroutine[Any, Any, T], timeout_s: float | None, late: Exception
    ) -> T:
        """Return the result of `work`; raises `KernelDied` if the kernel ends first, and `late` after `timeout_s`."""
        tasks = asyncio.ensure_future(work), asyncio.ensure_future(self._provisioner.wait())
        try:
            done, _ = await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0] in done and self._ending is None:
                return tasks[0].result()
            raise await self._explain_end() if done else late
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _explain_end(self) -> KernelDied:
        kernel = self._launched
        with suppress(RoostError):
            kernel = await self._provisioner.service.kernel(self.id)
        reason = kernel.reason or "no reason known"
        fields = {"exit_code": kernel.exit_code, "log_tail": kernel.log_tail}
        return KernelDied(f"The kernel has ended: {reason}.", **fields)


class BlockingKernel(_KernelFacts):
    """A kernel for a program without an event loop. `roost.start_kernel` returns it; the end of `with` stops it.

    In a thread with a running event loop, `start_kernel` does not start the kernel. `await` and `async with`
    then start it and give an `AsyncKernel`.
    """

    def __init__(self, kernel: AsyncKernel) -> None:
        super().__init__(kernel._manager)
        self._kernel = kernel

    def start(self) -> BlockingKernel:
        """Start the kernel. If this fails or Ctrl-C ends it, nothing stays behind."""
        _run(self._kernel.start)
        return self

    def execute(self, code: str, *, timeout_s: float | None = None, check: bool = False) -> Result:
        """Execute code, as `AsyncKernel.execute`. Ctrl-C interrupts the code."""
        return _run(self._kernel.execute, code, timeout_s=timeout_s, check=check)

    def client(self) -> BlockingKernelClient:
        """Return a new jupyter_client that is connected to the kernel. It is closed when the kernel is stopped.

        Raises `KernelDied` if the kernel has ended.
        """
        _run(self._kernel.check_lives)
        client = self._manager.blocking_client()
        client.context = find_context(zmq.Context)
        accept_odd_messages(client)
        client.start_channels(hb=False)
        self._kernel._clients.append(client)
        client.wait_for_ready(_ANSWER_S)
        return client

    def interrupt(self) -> None:
        """Interrupt the code that the kernel executes for another thread."""
        _run(self._kernel.interrupt)

    def restart(self) -> None:
        """Restart the kernel, as `AsyncKernel.restart`."""
        _run(self._kernel.restart)

    def stop(self) -> None:
        """Stop the kernel and give its lease back. May be repeated."""
        _run(self._kernel.stop)

    def __enter__(self) -> BlockingKernel:
        return self if self._manager.provisioner is not None else self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __await__(self) -> Generator[Any, None, AsyncKernel]:
        return self._kernel.start().__await__()

    async def __aenter__(self) -> AsyncKernel:
        return await self._kernel.start()

    async def __aexit__(self, *_: object) -> None:
        await self._kernel.stop()


async def await_answer(client: AsyncKernelClient) -> None:
    """Ask the kernel for its info until an IOPub message answers. The client then receives all later outputs.

    IOPub messages for other requests do not count, because an earlier process of the kernel may have sent
    them.
    """
    asked: set[str] = set()

    async def read_answer() -> None:
        while (await client.get_iopub_msg())["parent_header"].get("msg_id") not in asked:
            pass

    while True:
        asked.add(client.kernel_info())
        with suppress(asyncio.TimeoutError):
            return await asyncio.wait_for(read_answer(), _ASK_AGAIN_S)


def start_kernel(
    kernel_name: str = "python3",
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout_s: float | None = None,
    backend_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> BlockingKernel:
    """Start a kernel of an installed kernelspec: `with roost.start_kernel(gpus=0.5, backend="ray") as kernel: ...`

    In an event loop, `await` and `async with` start it. `options` are the options of a kernelspec and override its
    own: `backend`, `cpus`, `memory`, `gpus`, `labels` and so on. `backend_options` are those of `roost.connect`. `env`
    adds variables to the kernel's environment. `timeout_s` limits the queue and the launch together. Raises
    `ConfigError` for a wrong argument, and the errors of a start. If the program ends without `stop`, the scheduler
    stops the kernel after `owner_grace_s`.
    """
    check_names(options, _ARGUMENTS, "argument of start_kernel")
    if not isinstance(kernel_name, str):
        raise ConfigError(f"kernel_name = {kernel_name!r:.60} is not a kernelspec's name.")
    if cwd is not None and not isinstance(cwd, (str, os.PathLike)):
        raise ConfigError(f"cwd = {cwd!r:.60} is not a folder's path.")
    if timeout_s is not None:
        read_seconds("timeout_s", timeout_s)
    given = {**options, "launch_timeout": timeout_s}
    given = {name: value for name, value in given.items() if value is not None}
    manager, merged = build_manager(kernel_name, given, env=env, backend_options=backend_options)
    is_local = get_spec(merged.get("backend", DEFAULT_BACKEND)).runs_on_this_machine
    if cwd is not None and is_local and not os.path.isdir(cwd):
        raise ConfigError(f"cwd = {os.fspath(cwd)!r} is not a folder.")
    kernel = BlockingKernel(AsyncKernel(manager, os.fspath(cwd) if cwd is not None else None))
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return kernel.start()
    return kernel


def _run(work: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work` on the loop's thread. Ctrl-C cancels it and waits until it has ended."""
    # `work` is a function: a coroutine that Ctrl-C leaves here before its first step is reported as never awaited.
    loop = _get_loop()
    tasks: list[asyncio.Task[T]] = []
    ended = threading.Event()

    def begin() -> None:
        tasks.append(loop.create_task(work(*args, **kwargs)))
        tasks[0].add_done_callback(lambda _: ended.set())

    def cancel() -> None:
        if tasks:
            tasks[0].cancel()
        else:  # Ctrl-C came before `begin` was sent
            ended.set()

    try:
        loop.call_soon_threadsafe(begin)
        ended.wait()
    except KeyboardInterrupt:
        loop.call_soon_threadsafe(cancel)
        ended.wait()
        raise
    return tasks[0].result()


@functools.cache
def _get_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all blocking kernels of this process."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="roost-kernels", daemon=True).start()
    return loop


os.register_at_fork(after_in_child=_get_loop.cache_clear)  # the child has no such thread
