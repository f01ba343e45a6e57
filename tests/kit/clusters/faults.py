"""Notebooks on a cluster whose parts fail, and the checks after each fault, for every cluster manager."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from kit.jupyter.kernelspecs import kernelspecs
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import daemon_pids, kill
from roost.placement.model import Request
from roost.scheduler.client.client import Client, connect
from roost.scheduler.errors import BackendUnavailable, RoostError
from roost.scheduler.messages import Kernel
from roost.testing import deadlines
from roost.testing.deadlines import allow_s

KNOWN_S = 60.0
"""How long a service may take until it reaches an agent again that was `unreachable`."""


class ClusterWorld:
    """Notebooks with kernels on the cluster of `backend`. roost's service has the runtime folder `home`.

    `options` are the kernelspec's options for all kernels. The subclass for a cluster manager overrides
    either `lives` and `close`, or `held`, `key_of` and `left`.
    """

    clean_s = 30.0
    """How long the cluster manager may take to remove everything of an ended kernel."""

    def __init__(
        self, backend: str, home: Path, folder: Path, argv: Sequence[str] = (), **options: Any
    ) -> None:
        self.home = home
        self.folder = folder
        self.opened: list[Notebook] = []
        self._config = {"backend": backend, **options}
        self._spec: dict[str, Any] = {"argv": list(argv)} if argv else {}
        """The fields of the kernelspec that differ from the usual ones."""
        self._settings: dict[str, dict[str, Any]] = {}

    def held(self) -> dict[str, str]:
        """Return the node of each kernel's pod or container, by the key that `key_of` returns."""
        raise NotImplementedError

    def key_of(self, notebook: Notebook, kernel: Kernel) -> str:
        """Return the key that identifies the pod or container of this kernel."""
        raise NotImplementedError

    def left(self) -> list[str]:
        """Return a line for each thing that ended kernels have left in the cluster manager."""
        raise NotImplementedError

    def configure(self, **changes: Any) -> None:
        """Change settings of the backend in the configuration file in `folder`. The service reads it when it starts."""
        section = f"Roost{self._config['backend'].title()}Backend"
        self._settings[section] = {**self._settings.get(section, {}), **changes}
        (self.folder / "jupyter_roost_config.json").write_text(json.dumps(self._settings))

    def service(self) -> Client:
        return connect(self._config["backend"])

    def notebook(self, **config: Any) -> Notebook:
        """Return a notebook that is not open yet."""
        notebook = Notebook("roosted")
        notebook.manager.kernel_spec_manager = kernelspecs(
            self.folder / str(len(self.opened)), config={**self._config, **config}, **self._spec
        )
        self.opened.append(notebook)
        return notebook

    async def open(self, **config: Any) -> Notebook:
        """Open a notebook with this configuration. Its variable `mine` is 42."""
        notebook = self.notebook(**{"launch_timeout": allow_s(60), **config})
        await notebook.open()
        await notebook.run("import os, time; mine = 42")
        return notebook

    async def close_stopped(self, notebook: Notebook) -> None:
        """Close a notebook whose kernel was stopped before."""
        await notebook.close()
        self.opened.remove(notebook)

    async def kernel_of(self, notebook: Notebook) -> Kernel:
        """Return the kernel as the service knows it. Ask again for a minute while its cluster is `away`."""
        began = time.monotonic()
        while True:
            try:
                return await self.service().kernel(notebook.manager.kernel_id)
            except BackendUnavailable:
                if time.monotonic() - began > 60:
                    raise
            await asyncio.sleep(0.2)

    async def running(self, *notebooks: Notebook) -> list[Kernel]:
        """Check that these kernels run and keep their variables. Return them as the service knows them.

        A kernel whose node was cut off is `unknown` until the service has asked its agent again.
        """
        for notebook in notebooks:
            assert await notebook.value("mine") == "42"
        kernels: list[Kernel] = []

        async def are_known() -> bool:
            nonlocal kernels
            kernels = [await self.kernel_of(notebook) for notebook in notebooks]
            return all(kernel.state != "unknown" for kernel in kernels)

        await deadlines.until(are_known, "the service knows whether the kernels run", KNOWN_S, 0.1)
        assert [kernel.state for kernel in kernels] == ["running"] * len(kernels)
        return kernels

    async def lives(self, *notebooks: Notebook) -> None:
        """Check that these kernels run, keep their variables, and have the only pods or containers."""
        kernels = await self.running(*notebooks)
        pairs = zip(notebooks, kernels, strict=True)
        assert self.held() == {self.key_of(notebook, kernel): kernel.node_id for notebook, kernel in pairs}

    async def ended(self, notebook: Notebook, within_s: float) -> str:
        """Wait until the owner knows that the kernel has ended. Return the reason, which is one plain sentence."""
        reason = await notebook.ended(self.service(), within_s)
        assert_plain(reason)
        return reason

    async def restart(self, notebook: Notebook) -> None:
        """Restart a kernel, and connect to its address, which differs in a new pod or container."""
        notebook.client.stop_channels()
        await notebook.manager.restart_kernel()
        notebook.client = notebook.manager.client()
        notebook.client.start_channels()
        await notebook._until_ready()
        assert (await notebook.run("mine"))["ename"] == "NameError"
        await notebook.run("mine = 42")

    def kill_service(self) -> None:
        for pid in daemon_pids(self.home, "scheduler"):
            kill(pid)

    def pause_service(self) -> None:
        """Stop the service with SIGSTOP. No other service starts until this one is killed."""
        for pid in daemon_pids(self.home, "scheduler"):
            os.kill(pid, signal.SIGSTOP)

    async def has_room(self, within_s: float = 60.0, **asked: Any) -> float:
        """Wait until the service has room for a request with these fields. Return the seconds."""
        began, problem = time.monotonic(), ""

        async def is_there() -> bool:
            nonlocal problem
            try:
                decision = await self.service().explain(Request(**asked))
            except RoostError as error:
                problem = str(error)
                return False
            problem = f"there is no room: {decision}"
            return bool(decision["placement"])

        await deadlines.until(is_there, lambda: f"the service has room: {problem}", within_s, 0.1)
        return time.monotonic() - began

    async def refusal(self, within_s: float = 60.0, **asked: Any) -> str:
        """Wait until the service refuses a request with these fields for now, or fails. Return the reason."""

        async def find_reason() -> str:
            try:
                decision = await self.service().explain(Request(**asked))
            except RoostError as error:
                assert_plain(error.user_message)
                return error.user_message
            if decision["placement"]:
                return ""
            assert not decision["is_never"]
            return f"{decision['reason']} {decision['refusals']}"

        return await deadlines.until(find_reason, "the service refuses the request", within_s)

    async def waits_for(self, text: str, within_s: float = 60.0) -> str:
        """Wait until some kernel waits for a reason that holds this text. Return the whole reason."""
        reasons: list[str] = []

        async def find_reason() -> str:
            nonlocal reasons
            reasons = [kernel.waits_for for kernel in await self.service().kernels()]
            return next((reason for reason in reasons if text in reason), "")

        reason = await deadlines.until(
            find_reason, lambda: f"a kernel waits for {text!r}: {reasons}", within_s, 0.1
        )
        assert_plain(reason)
        return reason

    def cpus_of_backend(self) -> dict[str, float]:
        """Return the CPUs that the backend holds for itself on each node while the service runs."""
        return {}

    async def promised(self) -> list[str]:
        """Return a line for each node with promised CPUs beyond the backend's own, or the service's error."""
        try:
            nodes = await self.service().nodes()
        except RoostError as problem:
            return [str(problem)]
        own = self.cpus_of_backend()
        return [
            f"{node['id']} promises {node['cpus_promised']} CPUs"
            for node in nodes
            if node["cpus_promised"] > own.get(node["id"], 0)
        ]

    async def listed(self) -> list[str]:
        """Return a line for each kernel that the service lists."""
        return [f"kernel {kernel.id} is {kernel.state}" for kernel in await self.service().kernels()]

    async def close(self) -> None:
        """Close all notebooks. Check that no kernel, no remains and no promises are left."""
        for notebook in self.opened:
            if hasattr(notebook, "client"):
                await notebook.close()
        began, found = time.monotonic(), list[str]()

        async def is_clean() -> bool:
            nonlocal found
            found = [*await self.listed(), *self.left(), *await self.promised()]
            return not found

        # A kernel's end may outlast its notebook's.
        await deadlines.until(is_clean, lambda: f"left behind: {found}", self.clean_s, 0.1)
        say("all removed after", began)


@contextmanager
def show_logs(home: Path) -> Iterator[None]:
    """Print the ends of the service's logs if the block fails."""
    try:
        yield
    except BaseException:
        for log in home.glob("scheduler*/log*"):
            print(f"--- {log}", *log.read_text().splitlines()[-80:], sep="\n")
        raise


def assert_plain(reason: str) -> None:
    """Check that a reason is one sentence or clause for people, not a dump."""
    assert reason
    assert len(reason) < 300, reason
    assert not set("{}\n\\") & set(reason), reason
    assert reason.count(". ") == 0 or reason.endswith("."), reason


async def until(is_true: Callable[[], Any], what: str, within_s: float = 60.0) -> None:
    """Wait until something is true. A cluster manager that refuses or is `away` counts as false."""

    def is_so() -> bool:
        with contextlib.suppress(OSError):
            return bool(is_true())
        return False

    await deadlines.until(lambda: asyncio.to_thread(is_so), what, within_s, 0.1)


def read_command(process: psutil.Process) -> str:
    """Return the command line of a process, or an empty text if it has just ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def read_name(process: psutil.Process) -> str:
    """Return the name of a process, or an empty text if it has just ended."""
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


def say(text: str, since: float | None = None) -> None:
    """Print a line about the test, with the seconds since the monotonic time `since`."""
    print(f"    {text}" + (f" {time.monotonic() - since:.1f} s" if since is not None else ""), flush=True)
