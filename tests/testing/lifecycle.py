"""Whole lives of kernels on a backend, as tests that other packages can run.

The tests use roost as a Jupyter application does: through jupyter_client and a kernelspec with roost's provisioner.
They need pytest, pytest-asyncio, jupyter_client and ipykernel.
"""

from __future__ import annotations

import asyncio
import json
import operator
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from roost.scheduler.backends.registry import get_spec
from roost.scheduler.messages import Kernel

from .application import ASKED, FOREIGN, SPEC, Application, Promised, first_application
from .deadlines import allow_s
from .leftovers import await_end, describe, of_roost, private_runtime_dir, processes, terminate
from .live_kernel import LiveKernel, is_open, within
from .promises import holds

_COUNTED = 30
_COUNT = f"""
import time
x = 41
for i in range({_COUNTED}):
    print(i, flush=True)
    time.sleep(0.1)
"""
_NUMBERS = "".join(f"{i}\n" for i in range(_COUNTED))
_NOTHING: Promised = {}
_LINES, _LONG = 2_000, 1 << 20
_WAIT = """
import subprocess, time
child = subprocess.Popen(["sleep", "600"])
print("begun", flush=True)
while True:
    time.sleep(0.1)
"""


@pytest.mark.asyncio
class KernelLifecycle:
    """A mixin of tests that run whole lives of kernels on one backend. Its cluster has room for two kernels.

    Override `roost_backend`. Override `kernel_python` if a pod has another Python, and `kernel_config` if kernels must
    ask for something else. The services of a test class have a ROOST_RUNTIME_DIR of their own.
    """

    start_s = 60.0
    """How long a start may take, from the queue to a running kernel."""
    answer_s = 60.0
    """How long a kernel, an agent or the service may take to answer or to end."""
    freed_s = 60.0
    """How long the cluster manager may show the resources of an ended kernel as promised."""

    @pytest.fixture
    def roost_backend(self) -> tuple[str, Mapping[str, Any]]:
        """Return the backend's name, as in its entry point, and its options, as `roost.connect` takes them."""
        raise NotImplementedError("override the fixture `roost_backend`: it returns a name and options")

    @pytest.fixture
    def kernel_python(self) -> str:
        """Return the command of the Python that runs the kernel. A pod may need another Python than this process."""
        return sys.executable

    @pytest.fixture
    def kernel_config(self) -> Mapping[str, Any]:
        """Return what each kernel asks for, as in a kernelspec's `config`: CPUs at least."""
        return {"cpus": 0.1}

    @pytest.fixture(scope="class")
    @classmethod
    def runtime_folder(cls) -> Iterator[str]:
        """Set ROOST_RUNTIME_DIR to a private folder. At the end, no process with this folder is left.

        An agent gives a lease back by itself after `restart_grace_s`. This time is longer than `freed_s` here, so that
        the tests see a lease that the backend does not release.
        """
        with private_runtime_dir() as folder, pytest.MonkeyPatch.context() as patch:
            settings = {"RoostScheduler": {"restart_grace_s": 5 * cls.freed_s}}
            Path(folder, "jupyter_roost_config.json").write_text(json.dumps(settings))
            patch.setenv("JUPYTER_CONFIG_PATH", folder, prepend=os.pathsep)
            yield folder
            terminate(processes(folder))

    @pytest_asyncio.fixture
    async def application(
        self,
        runtime_folder: str,
        roost_backend: tuple[str, Mapping[str, Any]],
        kernel_python: str,
        kernel_config: Mapping[str, Any],
        tmp_path: Path,
    ) -> AsyncIterator[Application]:
        """Yield an application, after the agents of all nodes run. Its kernels end with the test."""
        application = Application(
            folder=str(tmp_path),
            backend=roost_backend[0],
            options=roost_backend[1],
            python=kernel_python,
            config=kernel_config,
            start_s=self.start_s,
            answer_s=self.answer_s,
        )
        try:
            with holds("the service starts, and joins the cluster"):
                await application.service.up()
            yield application
        finally:
            await application.close()

    async def test_a_kernel_starts_with_its_lease_and_its_environment(self, application: Application) -> None:
        kernel = await self.start(application)
        with holds("a kernel that runs is listed, with a lease on a node of the cluster"):
            found = await application.running(kernel)
            listed = [each.id for each in await application.service.kernels()]
            assert listed == [kernel.id], f"the service lists {listed}, not {kernel.id}"
            assert found.node_id in await application.promised(), f"there is no node {found.node_id!r}"
            assert found.lease_id, "it has no lease"
        with holds("a kernel has the variables of its kernelspec's `env`, and of its option `environment`"):
            env = await _environment(kernel)
            for name, value in ((SPEC, "spec"), (ASKED, "asked")):
                assert env.get(name) == value, f"{name} is {env.get(name)!r}, not {value!r}"
        with holds("a kernel has the other variables of its application only if it runs on this machine"):
            is_here = get_spec(application.service.backend).runs_on_this_machine
            assert (FOREIGN in env) == is_here, (
                f"runs_on_this_machine is {is_here}; {FOREIGN} is set: {not is_here}"
            )
        with holds("a kernel's PATH has the programs of its node"):
            assert await kernel.run("import shutil; print(shutil.which('sh'))") != "None", "`sh` is not found"

    async def test_output_is_complete_and_the_agent_keeps_it(self, application: Application) -> None:
        kernel = await self.start(application)
        code = f"for i in range({_LINES}): print(i)\nprint('x' * {_LONG})"
        expected = "".join(f"{i}\n" for i in range(_LINES)) + "x" * _LONG + "\n"
        with holds("a client receives all output of a cell, in order, and its error"):
            await (cell := kernel.begin(code)).ends()
            assert cell.text == expected, f"it has {len(cell.text)} characters, not these {len(expected)}"
            assert (error := await kernel.begin("1 / 0").ends()) == "ZeroDivisionError", f"it is {error!r}"
        with holds("the agent keeps the kernel's latest output"):
            await application.kept_output(kernel, code, expected)

    async def test_an_interrupt_reaches_the_kernel_and_its_children(self, application: Application) -> None:
        await self.interrupts(await self.start(application))

    @pytest.mark.parametrize("now", [False, True])
    async def test_a_restart_keeps_lease_ports_and_keys(self, application: Application, now: bool) -> None:
        await self.restarts(application, await self.start(application), now=now)

    async def test_the_end_of_a_kernel_is_reported(self, application: Application) -> None:
        kernel = await self.start(application)
        before = await application.running(kernel)
        with holds("the application learns the exit code of a kernel that ends by itself"):
            kernel.begin("import os; os._exit(7)")
            assert (code := await kernel.ends()) == 7, f"it learns {code}, not 7"
        with holds("a kernel that has ended by itself can be restarted in its lease"):
            await kernel.restart()
            self.same(before, await application.running(kernel), has_restarted=True)

    async def test_a_kernel_outlives_its_service(self, application: Application) -> None:
        kernel = await self.start(application)
        before, env = await application.running(kernel), await _environment(kernel)
        cell = kernel.begin(_COUNT)
        with holds("a client receives output while the cell runs"):
            await cell.shows("3\n")
        with holds("kernel, agent and lease outlive a killed service, and the next service finds them"):
            await application.end_service()
            assert await is_open(kernel.address), f"nothing listens at the kernel's address {kernel.address}"
            self.same(before, await application.running(kernel))
            assert before.node_id in await application.promised(), f"there is no node {before.node_id!r} now"
        with holds("a cell goes on while the service is killed, and its client receives all output"):
            assert await cell.ends() == "", "the cell failed"
            assert cell.text == _NUMBERS, f"the output is {cell.text!r}"
            assert await kernel.run("print(x)") == "41", "a variable is lost"
        await self.interrupts(kernel)
        await self.restarts(application, kernel, now=True)
        with holds("a kernel's environment depends on its lease, not on the service that starts it"):
            other = {name for name, _ in (await _environment(kernel)).items() ^ env.items()}
            assert not other, f"these variables differ after a restart: {sorted(other)}"
        await self.ends(application, kernel)

    async def test_the_next_application_adopts_a_kernel(self, application: Application) -> None:
        with holds("an application can start a kernel that outlives it"):
            async with first_application(application, _COUNT) as kernel_id:
                before = await application.service.kernel(kernel_id)
        with holds("the next application can adopt the kernel"):
            kernel = await application.adopt(kernel_id)
            assert await kernel.run("print(x)") == "41", "a variable is lost"
        with holds("the agent keeps the output of a cell that ran while no application held the kernel"):
            await application.kept_output(kernel, _COUNT, _NUMBERS)
        with holds("an adopted kernel keeps its lease, and the next service finds the lease's new owner"):
            self.same(before, await application.running(kernel))
            await application.end_service()
            found = await application.running(kernel)
            self.same(before, found)
            assert found.owner.pid == os.getpid(), f"the next service finds the owner {found.owner}"
        await self.interrupts(kernel)
        await self.restarts(application, kernel, now=True)
        await self.ends(application, kernel)

    async def test_the_end_leaves_no_lease_and_no_process(
        self, application: Application, runtime_folder: str
    ) -> None:
        before = await application.promised()
        kernels = [await self.start(application), await self.start(application)]
        with holds("the nodes promise each kernel its CPUs"):
            asked = sum([(await application.running(kernel)).request.cpus for kernel in kernels])

            async def look() -> str:
                cpus = sum(amounts[0] for amounts in (await application.promised()).values())
                return "" if cpus > asked - 1e-6 else f"two kernels ask for {asked} CPUs; {cpus} are promised"

            await application.until(look, self.freed_s)
        await self.ends(application, *kernels, before=before)
        with holds("a service that starts after a shutdown finds no lease of the kernel"):

            async def look_anew() -> str:
                await application.end_service()
                return await _left(application, before)

            await application.until(look_anew, self.freed_s)
        with holds("a service ends soon after SIGTERM"):
            await application.end_service(signal.SIGTERM)
        with holds("no agent outlives its work"):
            if not get_spec(application.service.backend).has_agent_per_kernel:
                terminate(of_roost(runtime_folder))  # an agent of a node waits for other kernels
            await asyncio.to_thread(await_end, of_roost(runtime_folder), self.freed_s)
            left = [describe(process) for process in of_roost(runtime_folder)]
            assert not left, f"these processes are left: {left}"

    # Steps

    async def start(self, application: Application) -> LiveKernel:
        with holds(f"a kernel starts within {self.start_s:g} s, and answers"):
            return await application.start()

    async def interrupts(self, kernel: LiveKernel) -> None:
        with holds("an interrupt reaches the code of a kernel, and the programs that it has started"):
            cell = kernel.begin(_WAIT)
            await cell.shows("begun")
            await asyncio.sleep(
                allow_s(0.2)
            )  # some kernels hang if they are interrupted while they still print
            await kernel.interrupt()
            assert (error := await cell.ends()) == "KeyboardInterrupt", f"the code ended with {error!r}"
            code = await kernel.run("print(child.wait(60))")
            assert code == str(-signal.SIGINT), f"the program ended with {code}, not by SIGINT"

    async def restarts(self, application: Application, kernel: LiveKernel, *, now: bool) -> None:
        """Check a restart, with `now` while code runs."""
        with holds("a restart keeps the lease, the ports and the keys, and clients stay connected"):
            before, connection = await application.running(kernel), kernel.manager.get_connection_info()
            await kernel.run("x = 42")
            if now:
                await kernel.begin("print('begun', flush=True); import time; time.sleep(600)").shows("begun")
            await kernel.restart(now=now)
            after = await application.running(kernel)
            self.same(before, after, has_restarted=True)
            assert kernel.manager.get_connection_info() == connection, "the ports or the keys differ"
        with holds("a restarted kernel is a new process"):
            assert after.launch_id != before.launch_id, "the service knows of no new launch"
            assert await kernel.begin("x").ends() == "NameError", "the kernel has its old variables"

    async def ends(self, application: Application, *kernels: LiveKernel, before: Promised = _NOTHING) -> None:
        """Shut kernels down. Check that no kernel is left, and that each node promises no more than `before`."""
        with holds("a shutdown ends the kernel's process"):
            addresses = [kernel.address for kernel in kernels]
            for kernel in kernels:
                await kernel.shut_down()
            for address in addresses:
                await within(is_open(address, until_closed=True), self.answer_s, f"{address} stayed open")
        with holds("a shutdown releases the lease"):
            await application.until(lambda: _left(application, before), self.freed_s)

    def same(self, before: Kernel, after: Kernel, *, has_restarted: bool = False) -> None:
        """Check that the service reports the same kernel in the same lease, and the same process or a new one."""
        for name in ("lease_id", "node_id", "device_ids", *(() if has_restarted else ("launch_id", "pid"))):
            was, now = getattr(before, name), getattr(after, name)
            assert was == now, f"its {name} was {was!r} and is {now!r}"


async def _environment(kernel: LiveKernel) -> dict[str, str]:
    return dict(json.loads(await kernel.run("import json, os; print(json.dumps(dict(os.environ)))")))


async def _left(application: Application, before: Promised) -> str:
    """Return the kernels that are left, or the nodes that promise more than `before`. Empty if there are none."""
    if listed := await application.service.kernels():
        return f"the service lists {[(kernel.id, kernel.state, kernel.reason) for kernel in listed]}"
    now = await application.promised()
    return "; ".join(
        f"{node} promises {amounts} CPUs, bytes and GPUs; before the kernels it promised {was}"
        for node, was in before.items()
        if any(map(operator.gt, amounts := now.get(node, was), was))
    )
