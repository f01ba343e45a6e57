"""The kinds of kernels that must not differ: a fresh one, and the kernels of roost's agent.

fresh      a new process, as plain Jupyter starts it
executed   a new process, as the agent starts it
fork       forked when it is asked for
standby    forked and built before
preload    forked from a zygote with `preload`
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit.machine.forked_kernels import Agent, Kernel, command_of
from roost.launchers.agent.warm.kernel_command import KernelCommand, NotForked
from roost.launchers.agent.warm.zygote_start import SCRIPT

from .program import Program
from .session import HANGS, run_session

KINDS = ("executed", "fork", "standby", "preload")
_MODULES = {
    "cryptography": "cryptography.x509",
    "dask": "dask",
    "ipywidgets": "ipywidgets",
    "joblib": "joblib",
    "matplotlib": "matplotlib.pyplot",
    "numpy": "numpy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "scikit-learn": "sklearn",
    "tqdm": "tqdm",
}
"""Modules that the zygotes of `preload` import: numpy, and those of the packages that the program needs."""
_MOST_TRIES = 40


class Kinds:
    """Starts kernels of one Python, of every kind. Each kind has a stand-in for the agent of its own."""

    def __init__(self, python: str, *, script: Path = SCRIPT, env: Mapping[str, str] | None = None) -> None:
        """`script` is the zygote's program, and `env` further variables of each forked kernel."""
        self._python = python
        self._script = script
        self._env = dict(env or {})
        # A short path under /tmp: some programs make Unix sockets in their folder.
        self._folder = Path(tempfile.mkdtemp(prefix="roost-programs-"))
        self._agents: dict[str, Agent] = {}
        self._transcripts: dict[str, list[str]] = {}

    def run_fresh(self, program: Program) -> list[str]:
        """Return the transcript of a program on a fresh kernel. Each program runs once.

        It runs again if Python aborts or hangs at its end. Plain kernels do that rarely (each seen once in ten thousand
        ends); a thread that holds the lock of a file's buffer is a known cause of aborts (python/cpython#129536).
        """
        if program.name not in self._transcripts:
            transcript = self.run(program, "fresh")
            if {f"exit code {-signal.SIGABRT}", HANGS} & set(transcript):
                transcript = self.run(program, "fresh")
            self._transcripts[program.name] = transcript
        return self._transcripts[program.name]

    def run(self, program: Program, kind: str, env: Mapping[str, str] | None = None) -> list[str]:
        """Return the transcript of a program on a kernel of this kind."""
        folder = Path(tempfile.mkdtemp(prefix="w", dir=self._folder))
        for cell in program.cells:
            if cell.kind == "setup":
                exec(
                    compile(cell.code, f"{program.name}.py", "exec"),
                    {"folder": folder, "python": self._python},
                )
        own = {name: value.replace("{folder}", str(folder)) for name, value in program.env.items()}
        agent = self._agent(kind, program, own.get("IPYTHONDIR"))
        before = agent.command, agent.env
        python = program.python.replace("{folder}", str(folder)) or self._python
        command = KernelCommand(python=python, flags=(*command_of(python).flags, *program.flags))
        agent.command, agent.env = command, {**agent.env, **own, **self._env, **(env or {})}
        try:
            with run_session(self._starter(agent, kind, program, folder), folder) as session:
                return session.run(program)
        finally:
            agent.command, agent.env = before
            agent.end_kernels()
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """End all zygotes."""
        for agent in self._agents.values():
            agent.close()
        if self._agents:
            next(iter(self._agents.values())).reap()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _starter(self, agent: Agent, kind: str, program: Program, folder: Path) -> Callable[[], Kernel]:
        def start_fresh() -> Kernel:
            return agent.start_plain(cwd=folder, parent_pid=os.getpid())

        def start_forked() -> Kernel:
            warm_up()
            reasons: list[str] = []
            for _ in range(_MOST_TRIES):
                try:
                    kernel = agent.fork(cwd=folder)
                except NotForked as refusal:
                    reasons.append(str(refusal))
                    if len(reasons) == 3:  # an environment's first zygote may find that it needs another one
                        assert program.may_be_executed, f"{program.name} is not forked: {reasons}"
                        return start_fresh()
                    warm_up()
                    continue
                if kernel.was_standby == (kind == "standby"):
                    return kernel
                agent.kernels.remove(kernel)
                kernel.end()
                time.sleep(0.5)  # longer than a zygote waits before it forks: no event reports a standby
            raise AssertionError(f"no {kind} was ready")

        def warm_up() -> None:
            agent.loop.run_until_complete(agent.zygotes.warm(agent.command, agent.env, folder))

        def start_executed() -> Kernel:
            return agent.start_plain(cwd=folder, by_agent=True)

        return {"fresh": start_fresh, "executed": start_executed}.get(kind, start_forked)

    def _agent(self, kind: str, program: Program, ipython: str | None) -> Agent:
        """Return the agent for this program. Its standbys serve only kernels with the same folder `ipython`."""
        options: dict[str, Any] = {"script": self._script}
        if kind == "preload":
            wanted = dict.fromkeys(["numpy", *(each.name for each in program.needs)])
            options["preload"] = tuple(_MODULES[name] for name in wanted if name in _MODULES)
        name = "-".join(
            [kind, *options.get("preload", ()), *([Path(ipython).parent.name] if ipython else ())]
        )
        if name not in self._agents:
            folder = self._folder / name
            folder.mkdir()
            how = "standby" if kind == "standby" else "fork"
            agent = self._agents[name] = Agent(folder, how=how, **options)
            agent.command = command_of(self._python)
            for variable in ("LC_TEST", "PYTEST_CURRENT_TEST"):  # the second one differs between tests
                agent.env.pop(variable, None)
            agent.env["IPYTHONDIR"] = ipython or str(self._folder / "ipython")
            if kind not in ("fresh", "executed"):
                agent.warm()
        return self._agents[name]


@contextmanager
def open_kinds(python: str, **options: Any) -> Iterator[Kinds]:
    """Yield a `Kinds`, and end its processes at the end."""
    kinds = Kinds(python, **options)
    try:
        yield kinds
    finally:
        kinds.close()
