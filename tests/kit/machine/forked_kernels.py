"""Forked and plain kernels side by side: a real zygote, real kernels, and this process in the agent's place."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient

from roost.launchers.agent.launch.start import spawn_kernel
from roost.launchers.agent.machine import ports as free_ports
from roost.launchers.agent.warm.fork_report import ForkedKernel
from roost.launchers.agent.warm.kernel_command import KernelCommand, NotForked, parse_ipykernel_command
from roost.launchers.agent.warm.zygote_pool import MOST_SPARES, ZygotePool
from roost.launchers.agent.warm.zygote_start import SCRIPT
from roost.launchers.protocol.agent_settings import Forking
from roost.launchers.protocol.messages import PORT_NAMES, Connection, Launch
from roost.launchers.protocol.process_context import read_context
from roost.testing.deadlines import allow_s, until_blocking

REPLY_S = 180.0
_PR_SET_CHILD_SUBREAPER = 36


class Kernel:
    """A forked kernel and a client of it."""

    def __init__(self, forked: ForkedKernel, info: Mapping[str, Any], log: Path) -> None:
        self.forked = forked
        self.pid = forked.pid
        self.ports = {name: info[name] for name in PORT_NAMES}
        self.log = log
        self.client = BlockingKernelClient()
        self.client.load_connection_info(dict(info))
        self.client.start_channels(hb=False)
        self.code: int | None = None

    @property
    def was_standby(self) -> bool:
        return "standby" in self.forked.timing_ms

    def run(self, code: str) -> dict[str, Any]:
        """Execute `code` and return the content of the reply."""
        reply = self.client.execute(code, reply=True, timeout=allow_s(REPLY_S))
        return dict(reply["content"])

    def value(self, expression: str) -> Any:
        """Return the value of an expression in the kernel. The value must have a JSON form."""
        code = f"import json as _json; _value = _json.dumps({expression})"
        reply = self.client.execute(
            code, user_expressions={"v": "_value"}, reply=True, timeout=allow_s(REPLY_S)
        )
        assert reply["content"]["status"] == "ok", reply["content"]
        text = reply["content"]["user_expressions"]["v"]["data"]["text/plain"]
        return json.loads(ast.literal_eval(text))

    def wait(self) -> int:
        """Wait for the end of the kernel and return its exit code."""
        if self.code is None:
            self.code = wait_for(self.pid)
        return self.code

    def end(self) -> None:
        self.client.stop_channels()
        self.client.context.term()
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self.wait()


def wait_for(pid: int) -> int:
    """Wait for the end of a forked process and return its exit code.

    It becomes a child of this process only after the end of the process that forked it.
    """

    def reap() -> tuple[int] | None:
        with contextlib.suppress(ChildProcessError):
            return (os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),)
        return None

    return until_blocking(reap, f"{pid} is a child", REPLY_S, 0.01)[0]


@contextlib.contextmanager
def default_signals() -> Iterator[None]:
    """Reset signals for the processes started here, because nohup may have started the tests."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def wait_until_open(port: int) -> None:
    """Wait until somebody listens on this port of the loopback address."""

    def is_open() -> bool:
        with (
            contextlib.suppress(ConnectionRefusedError),
            socket.create_connection(("127.0.0.1", port), timeout=allow_s(REPLY_S)),
        ):
            return True
        return False

    until_blocking(is_open, f"somebody listens on port {port}", REPLY_S, 0.01)


class Agent:
    """A stand-in for the agent that starts kernels as the agent does."""

    def __init__(
        self,
        folder: Path,
        how: str = "any",
        script: Path = SCRIPT,
        **forking: Any,
    ) -> None:
        """Choose how kernels start: by `fork`, from a `standby`, or in `any` way. `forking` are fields of `Forking`.

        `script` is the program of the zygotes.
        """
        self.folder = folder
        self.how = how
        self.loop = asyncio.new_event_loop()
        self.zygotes = ZygotePool(Forking(**forking), warm_delay_s=0.0, script=script)
        self.zygotes.limit_spares(0 if how == "fork" else MOST_SPARES)
        self.command = command_of(sys.executable)
        self.env = {**os.environ, "IPYTHONDIR": str(folder / "ipython"), "LC_TEST": str(folder)}
        self.kernels: list[Kernel] = []

    def warm(self, cwd: Path | str = "/") -> int:
        """Start a zygote for kernels in this folder, which matters with start-up code, and return its pid."""
        self.loop.run_until_complete(self.zygotes.warm(self.command, self.env, cwd))
        return list(self.zygotes.interpreters())[-1]

    def try_start(self, *args: str, **options: Any) -> Kernel | None:
        """Start a kernel by `fork`. Return None if it would be executed."""
        try:
            return self.fork(*args, **options)
        except NotForked:
            return None

    def fork(
        self,
        *args: str,
        cwd: Path | None = None,
        ports: Mapping[str, int] | None = None,
        ip: str = "127.0.0.1",
        transport: str = "tcp",
        on_pid: Callable[[int], object] = lambda pid: None,
    ) -> Kernel:
        """Fork a kernel. Raises `NotForked` if it would be executed."""
        connection_file = self.folder / f"{uuid.uuid4().hex}.json"
        info = {"ip": ip, "transport": transport, "key": uuid.uuid4().hex, "signature_scheme": "hmac-sha256"}
        log = connection_file.with_suffix(".log")
        wanted = Connection(ip=ip, transport=transport).with_ports(
            {**dict.fromkeys(PORT_NAMES, 0), **(ports or {})}
        )
        with log.open("ab") as file, free_ports.listen(wanted) as (connection, listeners):
            info |= {name: getattr(connection, name) for name in PORT_NAMES}
            connection_file.touch(0o600)
            connection_file.write_text(json.dumps(info))
            forked = self.loop.run_until_complete(
                self.zygotes.launch(
                    KernelCommand(python=self.command.python, flags=self.command.flags, args=args),
                    connection_file=connection_file,
                    on_pid=on_pid,
                    env=self.env,
                    cwd=cwd or self.folder,
                    log_fd=file.fileno(),
                    deadline_s=REPLY_S,
                    listeners=listeners,
                )
            )
        self.kernels.append(Kernel(forked, info, log))
        return self.kernels[-1]

    def start(self, *args: str, how: str = "", **options: Any) -> Kernel:
        """Start a kernel with further arguments `args`. Without them, and if `how` is `standby`, wait for a standby."""
        needs_standby = (how or self.how) == "standby" and not args
        for _ in range(100):
            kernel = self.fork(*args, **options)
            if kernel.was_standby or not needs_standby:
                return kernel
            self.kernels.remove(kernel)
            kernel.end()
            time.sleep(0.1)
        raise AssertionError("no standby was ready")

    def start_plain(self, *, cwd: Path, parent_pid: int | None = None, by_agent: bool = False) -> Kernel:
        """Execute a kernel as a new process, for comparison. It logs to the same kind of file.

        With `parent_pid`, it knows its application by JPY_PARENT_PID, as in plain Jupyter. With `by_agent`, it is
        executed as the agent does it.
        """
        log = self.folder / f"{uuid.uuid4().hex}.log"
        # The system gives none of these ports to the connections of other processes.
        with free_ports.claim(Connection()) as chosen:
            numbers = {name: getattr(chosen, name) for name in PORT_NAMES}
            info = {
                "ip": "127.0.0.1",
                "transport": "tcp",
                "key": "key",
                "signature_scheme": "hmac-sha256",
                **numbers,
            }
            pid = self._execute(info, log, cwd, parent_pid, by_agent)
            for port in numbers.values():  # a client that connects before would miss a first `input`
                wait_until_open(port)
        self.kernels.append(Kernel(ForkedKernel(pid=pid, timing_ms={}), info, log))
        return self.kernels[-1]

    def _execute(
        self, info: Mapping[str, Any], log: Path, cwd: Path, parent_pid: int | None, by_agent: bool
    ) -> int:
        """Start the process of a kernel with this connection, and return its pid."""
        connection_file = log.with_suffix(".json")
        connection_file.write_text(json.dumps(info))
        argv = (
            self.command.python,
            *self.command.flags,
            "-m",
            "ipykernel_launcher",
            "-f",
            str(connection_file),
        )
        with log.open("ab") as file, default_signals():
            if by_agent:
                launch = Launch(
                    launch_id="",
                    lease_id="",
                    kernel_id="",
                    argv=argv,
                    env=self.env,
                    cwd=str(cwd),
                    connection=Connection(),
                    context=read_context(),
                )
                return spawn_kernel(launch, connection_file, file.fileno())
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                # With the pid of this process, it would end with it, as in plain Jupyter.
                env={**self.env, "JPY_PARENT_PID": str(parent_pid or 1)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        process.returncode = 0
        return process.pid

    def end_kernels(self) -> None:
        while self.kernels:
            self.kernels.pop().end()

    def close(self) -> None:
        self.end_kernels()
        self.loop.run_until_complete(self.zygotes.close())
        self.loop.close()
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

    def reap(self) -> None:
        """Wait until the zygotes and spares of all agents have ended, which they do with their agent."""
        while pids := children():
            self.zygotes.on_reaped(*os.waitpid(pids[0], 0))


def children() -> list[int]:
    """Return the pids of the zygotes and spares among this process's children."""
    listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in listed if b"zygote/main.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def command_of(python: str) -> KernelCommand:
    command = parse_ipykernel_command(
        [python, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    )
    assert command is not None
    return command
