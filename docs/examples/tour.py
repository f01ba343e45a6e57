"""A tour of roost: it starts kernels through a real Jupyter Server and runs a notebook on each of them.

    python docs/examples/tour.py                    on this machine
    python docs/examples/tour.py --backend ray      on a Ray cluster of three nodes, which it starts: `make run`
    python docs/examples/tour.py --backend dask     on a Dask cluster of three machines: `make run BACKEND=dask`
    python docs/examples/tour.py --backend kubernetes    on a Kubernetes cluster of three nodes, a pod for each kernel
    python docs/examples/tour.py --backend yarn     on a YARN cluster of three nodes, a container for each kernel
    python docs/examples/tour.py --backend ssh      on three hosts with a login: `make run BACKEND=ssh`
    python docs/examples/tour.py --lab              the same kernelspecs in JupyterLab, until Ctrl-C

Folders, port, token, cluster, service and agents are private to the tour. The exit status is 1 if a notebook fails, if
roost does not refuse the kernels that no node can run, or if anything is left at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
from cluster import KINDS, AnyCluster, FarCluster, end_cluster, find_leases, run_cluster
from dask_waits import wait_for_kernel
from proof import RUNTIME, Check, Footprint, check_left, end, find_footprint
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from server import CellFailed, JupyterServer, Output, execute, jupyter_server, run_notebook
from stops import REFUSED, STOPS, TourStop

from roost.testing.clusters.raylets import WITHOUT_TOKEN

HERE = Path(__file__).resolve().parent
GPUS = 2
IDLE_EXIT_S = 4  # longer than a zygote takes to warm up on a busy machine
AGENT_IDLE_EXIT_S = 6
SETTLE_TIMEOUT_S = 8.0
POLL_S = 0.3
LEAVE_TIMEOUT_S = 15.0
COMMAND_TIMEOUT_S = 30.0
IN_IMAGES = ("docker", "kubernetes")
"""The backends whose kernels have the Python of an image."""
PLAIN = "python3"
"""The kernelspec of a kernel that the server itself starts on this machine, for comparison."""
EXTENSION = "--ServerApp.jpserver_extensions={'roost': True}"
"""The option that turns roost's extension on. An installed roost needs no option."""

out = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The tour's private folders."""

    root: Path
    config: Path
    runtime: Path
    jupyter_runtime: Path
    notebooks: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A kernel, and how many milliseconds after POST the server answered and the kernel showed its first result."""

    kernel_id: str
    answered_ms: float
    result_ms: float
    how: str = ""
    """How roost started it: forked or exec."""


@contextmanager
def private_world(backend: str) -> Iterator[World]:
    """Make private folders and a configuration. End what still runs there and remove them at the end.

    Variables in this process's environment name the folders. Every part of the tour inherits these variables.
    """
    root = Path(tempfile.mkdtemp(prefix="roost-", dir="/tmp"))  # short: a socket's path has at most 107 bytes
    folders = {name: root / name.lower() for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    world = World(
        root=root,
        config=folders["JUPYTER_CONFIG_DIR"],
        runtime=root / "r",
        jupyter_runtime=root / "jupyter_runtime",
        notebooks=root / "notebooks",
    )
    folders |= {RUNTIME: world.runtime, "JUPYTER_RUNTIME_DIR": world.jupyter_runtime}
    folders["XDG_STATE_HOME"] = root / "state"
    before = dict(os.environ)
    for name in [
        name
        for name in os.environ
        if name.startswith(
            ("KERNEL_", "JUPYTER_", "JPY_", "RAY_", "DASK_", "DOCKER_", "HADOOP_", "KUBECONFIG")
        )
    ]:
        del os.environ[name]
    os.environ.update({name: str(folder) for name, folder in folders.items()})
    os.environ.update(WITHOUT_TOKEN)
    try:
        world.config.mkdir()
        configure(world.config)
        world.notebooks.mkdir()
        for notebook in HERE.glob("*.ipynb"):
            shutil.copy(notebook, world.notebooks)
        yield world
    finally:
        end(world.runtime)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(root, ignore_errors=True)


def configure(folder: Path, kind: str = "", settings: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Write roost's configuration file: short idle times, the cluster, and declared GPUs if the machine has none."""
    lines = [f"c.RoostScheduler.idle_exit_s = {IDLE_EXIT_S}"]
    lines += [f"c.Roost{kind}Backend.{name} = {value!r}" for name, value in settings.items()]
    if not shutil.which("nvidia-smi"):
        lines += [f"c.RoostLocalBackend.gpus = {GPUS}", "c.RoostLocalBackend.gpu_model = 'declared'"]
    (folder / "jupyter_roost_config.py").write_text("\n".join(lines) + "\n")


def install_kernelspecs(backend: str) -> None:
    """Install the kernelspecs of all stops, as `roost kernelspec install --from python3 --name ...` does.

    SSH hosts must run then: one of them tests the kernels' Python.
    """
    from roost.provisioners.kernelspecs import install

    for stop in (*STOPS[backend], *REFUSED[backend]):
        spec, _ = install(
            "python3",
            name=stop.name,
            config={"backend": backend, **stop.asks},
            display_name=stop.title,
            is_checked=backend not in IN_IMAGES,
        )
        if backend in IN_IMAGES:  # the Python of the image
            file = Path(spec.folder) / "kernel.json"
            content = json.loads(file.read_text())
            content["argv"][0] = "python3"
            file.write_text(json.dumps(content))


async def roost(*arguments: str, backend: str) -> dict[str, Any]:
    """Return the output of `roost ARGUMENTS --json`."""
    program = str(Path(sys.executable).with_name("roost"))
    command = [program, *arguments, "--backend", backend, "--json"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), COMMAND_TIMEOUT_S)
    except asyncio.TimeoutError:
        process.kill()
        raise
    if process.returncode:
        raise RuntimeError(f"roost {' '.join(arguments)} ended with {process.returncode}")
    answer: dict[str, Any] = json.loads(printed)
    return answer


async def nodes(backend: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await roost("nodes", backend=backend))["nodes"]
    return found


async def start(server: JupyterServer, name: str) -> Started | str:
    """Start a kernel and run `1 + 1` on it. Return the message of the server or of the cell if there is no kernel."""
    began = time.perf_counter()
    status, answer = await server.api("POST", "kernels", {"name": name})
    answered_ms = (time.perf_counter() - began) * 1000
    if status != 201:
        return f"HTTP {status}: {answer and answer.get('message')}"
    async with server.channels(answer["id"]) as socket:
        outputs = await execute(socket, "1 + 1")
    result_ms = (time.perf_counter() - began) * 1000
    if outputs and outputs[-1].kind == "error":  # the server has not waited for the refusal
        await server.api("DELETE", f"kernels/{answer['id']}")
        return f"in the cell: {outputs[-1].text.splitlines()[-1]}"
    return Started(kernel_id=answer["id"], answered_ms=answered_ms, result_ms=result_ms)


async def visit(server: JupyterServer, number: int, stop: TourStop, backend: str) -> Started | None:
    """Start one kernel, run its notebook and print both. Return the kernel, or None after a failure."""
    out.print(Rule(f"[bold]{number} · {stop.title}[/] · {stop.notebook}", align="left", style="cyan"))
    try:
        started = await start(server, stop.name)
        if isinstance(started, str):
            out.print(Text(f"not started: {started}", style="red"))
            return None
        cells = await run_notebook(server, started.kernel_id, HERE / stop.notebook)
    except (CellFailed, asyncio.TimeoutError, ConnectionError) as error:
        out.print(Text(f"the notebook failed: {str(error) or type(error).__name__}", style="red"))
        return None
    kernels = (await roost("kernels", backend=backend))["kernels"]
    kernel = next(kernel for kernel in kernels if kernel["id"] == started.kernel_id)
    describe(kernel)
    for source, outputs in cells:
        show_cell(source, outputs)
    return replace(started, how=kernel["process"]["how"])


async def visit_stops(server: JupyterServer, backend: str) -> list[Started]:
    """Visit all stops, each after a plain kernel on this machine, and print the times of both."""
    table = Table(box=None, padding=(0, 2), header_style="dim")
    for column in ("", "how", "POST answered", "plain local", "first result", "plain local"):
        table.add_column(column, justify="left" if column in ("", "how") else "right")
    visited: list[Started] = []
    for number, stop in enumerate(STOPS[backend], start=1):
        plain = await start(server, PLAIN)
        if isinstance(plain, Started):
            await server.api("DELETE", f"kernels/{plain.kernel_id}")
        started = await visit(server, number, stop, backend)
        if started is None:
            continue
        visited.append(started)
        times = [f"{started.answered_ms:.0f} ms", "-", f"{started.result_ms:.0f} ms", "-"]
        if isinstance(plain, Started):
            times[1], times[3] = f"{plain.answered_ms:.0f} ms", f"{plain.result_ms:.0f} ms"
        table.add_row(stop.title, started.how, *times)
    out.print(Rule("[bold]Times after POST[/]", align="left", style="cyan"))
    out.print(table)
    return visited


def describe(kernel: Mapping[str, Any]) -> None:
    """Print the kernel's node, the reason, and the time of each stage, from `roost kernels --json`."""
    devices = f", GPU {', '.join(kernel['device_ids'])}" if kernel["device_ids"] else ""
    row(
        "node",
        f"{kernel['node_id']}{devices}, process {kernel['process']['pid']} ({kernel['process']['how']})",
    )
    if kernel["process"]["why_not_forked"]:
        row("exec", f"because {kernel['process']['why_not_forked']}")
    decision = kernel["decision"]
    if decision:
        row("because", decision["reason"])
        row("policy", f"{decision['policy']}; {len(decision['refusals'])} refusals")
    row("stages", " · ".join(f"{name} {value:.1f} ms" for name, value in kernel["timing_ms"].items()))


def indent(text: Text, by: int) -> Padding:
    return Padding(text, (0, 0, 0, by), expand=False)


def row(name: str, value: str) -> None:
    """Print a name and its value in two columns."""
    line = Table.grid(padding=(0, 1))
    line.add_column(min_width=8, style="dim")
    line.add_column(overflow="fold")
    line.add_row(name, Text(value))
    out.print(Padding(line, (0, 0, 0, 2), expand=False))


def show_cell(source: str, outputs: list[Output]) -> None:
    """Print the first line of the code and all of its outputs."""
    first, *rest = source.splitlines()
    out.print(indent(Text(f"› {first}{' …' if rest else ''}", style="dim", no_wrap=True), 2))
    for output in outputs:
        kind = "" if output.kind in ("stdout", "text/plain") else f"[{output.kind}] "
        text = output.text.splitlines()[-1] if output.kind == "error" else output.text.rstrip("\n")
        out.print(indent(Text(f"{kind}{text}", style="red" if output.kind == "error" else ""), 4))


async def is_refused(server: JupyterServer, refused: TourStop) -> bool:
    """Request a kernel that roost cannot place, and print the refusal. False if roost started the kernel."""
    out.print(Rule(f"[bold]{refused.title}[/]", align="left", style="cyan"))
    began = time.perf_counter()
    answer = await start(server, refused.name)
    took_ms = (time.perf_counter() - began) * 1000
    if isinstance(answer, Started):
        out.print("[red]roost started it[/]")
        return False
    where, _, why = answer.partition(": ")
    row("refused", f"after {took_ms:.0f} ms, {where}")
    row("because", why)
    return True


async def does_task_wait(server: JupyterServer, cluster: AnyCluster, stop: TourStop, kernel_id: str) -> bool:
    """Submit a Dask task that asks for a kernel's resources. True if it runs only after the kernel's end."""
    out.print(
        Rule(
            f"[bold]A Dask task that asks for the same resources[/] · {stop.title}",
            align="left",
            style="cyan",
        )
    )
    asks = {"GPU": stop.asks["gpus"], **stop.asks["resources"]}
    row("asks", f"client.submit(…, resources={asks})")
    try:
        task = await wait_for_kernel(
            cluster.address, asks, lambda: server.api("DELETE", f"kernels/{kernel_id}")
        )
    except asyncio.TimeoutError:
        out.print("[red]the task did not run after the kernel had ended[/]")
        return False
    if not task.state:
        out.print("[red]the task ran beside the kernel[/]")
        return False
    row("waits", f"while the kernel lives: after 1 s its state in Dask is {task.state}")
    row("runs", f"{task.after_ms:.0f} ms after the call that ends the kernel, on {task.worker}")
    return True


async def stop_kernels(server: JupyterServer) -> list[str]:
    """DELETE every kernel. Return a line for each that could not be deleted."""
    _, running = await server.api("GET", "kernels")
    began = time.perf_counter()
    answers = await asyncio.gather(*(server.api("DELETE", f"kernels/{kernel['id']}") for kernel in running))
    row("kernels", f"{len(running)} stopped in {(time.perf_counter() - began) * 1000:.0f} ms")
    return [f"DELETE answered {status}" for status, _ in answers if status != 204]


async def leases_left(backend: str) -> Check:
    """Return the check that the scheduler has no kernels and no promises left.

    A cluster shows a release some seconds later, so the scheduler is asked again for a while.
    """
    amounts = ["gpus_promised", "kernels"]
    if backend != "yarn":  # its application master leaves later
        amounts += ["cpus_promised", "memory_promised_bytes"]
    give_up_at = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        kernels = [kernel["id"] for kernel in (await roost("kernels", backend=backend))["kernels"]]
        promised = [
            f"{node['id']}: {name} {node[name]}"
            for node in await nodes(backend)
            for name in amounts
            if node[name]
        ]
        if backend == "local" or not (kernels or promised) or time.monotonic() > give_up_at:
            return Check(what="no kernels, no leases", left=(*kernels, *promised))
        await asyncio.sleep(POLL_S)


async def prove(
    first: list[Check],
    before: Footprint,
    world: World,
    kernel_ids: list[str],
    backend: str,
    cluster: AnyCluster | None,
    inside: Sequence[psutil.Process] = (),
) -> bool:
    """Wait a while until all processes have ended, and print all remains. True if nothing is left.

    `inside` are the kernels' processes in pods or containers, or on hosts.
    """
    began = time.monotonic()
    await asyncio.to_thread(psutil.wait_procs, [*before.processes, *inside], timeout=LEAVE_TIMEOUT_S)
    waited_s = time.monotonic() - began
    folders = [world.runtime, world.jupyter_runtime]
    checks = first + check_left(before, world.runtime, folders, kernel_ids, cluster and cluster.folder)
    if inside:
        left = tuple(str(process.pid) for process in inside if process.is_running())
        checks.append(Check(what=f"{len(inside)} processes in pods, containers or hosts ended", left=left))
    if cluster:
        checks.append(await end_cluster(KINDS[backend], cluster))
    for one in checks:
        out.print(f"  {'[red]✗[/]' if one.left else '[green]✓[/]'} {one.what}")
        for left in one.left:
            out.print(indent(Text(left, style="red"), 4))
    row("waited", f"{waited_s:.1f} s until service, agents and zygotes had left by themselves")
    return not any(one.left for one in checks)


@asynccontextmanager
async def run_nodes(backend: str, world: World) -> AsyncIterator[AnyCluster | None]:
    """Start the cluster on which the kernels run, install the kernelspecs, and yield it.

    Yield None for this machine alone.
    """
    if backend == "local":
        install_kernelspecs(backend)
        yield None
        return
    kind = KINDS[backend]
    async with run_cluster(kind, out) as cluster:
        settings = {"agent_idle_exit_s": AGENT_IDLE_EXIT_S, "address": cluster.address}
        if isinstance(cluster, FarCluster):
            settings = cluster.settings(world.root)
        configure(world.config, kind.name.capitalize(), settings)
        await asyncio.to_thread(install_kernelspecs, backend)
        yield cluster


async def tour(backend: str) -> bool:
    """Run the whole tour. True if everything worked."""
    began = time.monotonic()
    with private_world(backend) as world:
        async with run_nodes(backend, world) as cluster:
            is_good = await visit_all(backend, world, cluster)
        root = world.root
    is_good &= not root.exists()
    verdict = "[green]nothing is left[/]" if is_good else "[red]something went wrong[/]"
    out.print(f"  {verdict} · {time.monotonic() - began:.0f} s")
    return is_good


async def visit_all(backend: str, world: World, cluster: AnyCluster | None) -> bool:
    """Run every stop and every refused start, and end everything. True if everything worked and nothing is left."""
    stops = STOPS[backend]
    async with jupyter_server(world.notebooks, options=[EXTENSION]) as server:
        row("server", f"Jupyter Server on 127.0.0.1:{server.port}, process {server.pid}")
        kernel_ids = [started.kernel_id for started in await visit_stops(server, backend)]
        is_good = len(kernel_ids) == len(stops)
        is_good &= all([await is_refused(server, refused) for refused in REFUSED[backend]])
        if is_good and cluster and backend == "dask":
            at = next(index for index, stop in enumerate(stops) if stop.notebook == "dask_map.ipynb")
            is_good = await does_task_wait(server, cluster, stops[at], kernel_ids[at])
        if not is_good:
            out.print(Text("\n".join(server.log[-30:]), style="dim"))
        before = find_footprint(world.runtime, cluster and cluster.folder)
        inside = cluster.kernel_processes() if isinstance(cluster, FarCluster) else []
        out.print(Rule("[bold]The end[/]", align="left", style="cyan"))
        left = await stop_kernels(server)
        checks = [Check(what="kernels deleted", left=tuple(left)), await leases_left(backend)]
        if cluster:
            checks.append(await find_leases(KINDS[backend], cluster))
    return await prove(checks, before, world, kernel_ids, backend, cluster, inside) and is_good


async def lab(backend: str) -> bool:
    """Run JupyterLab with the tour's kernelspecs until Ctrl-C or SIGTERM."""
    with private_world(backend) as world:
        until = asyncio.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, until.set)
        async with run_nodes(backend, world) as cluster:
            async with jupyter_server(world.notebooks, program="jupyterlab", options=[EXTENSION]) as server:
                out.print(f"JupyterLab is at [bold]{server.url}[/]", soft_wrap=True)
                out.print("The notebooks there are copies. Ctrl-C stops everything.")
                await until.wait()
                before = find_footprint(world.runtime, cluster and cluster.folder)
                _, running = await server.api("GET", "kernels")
                await stop_kernels(server)
                checks = [await find_leases(KINDS[backend], cluster)] if cluster else []
            kernel_ids = [kernel["id"] for kernel in running]
            return await prove(checks, before, world, kernel_ids, backend, cluster)


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--backend", default="local", choices=list(STOPS), help="where kernels run (local)")
    options.add_argument("--lab", action="store_true", help="open JupyterLab instead, until Ctrl-C")
    arguments = options.parse_args()
    kind = KINDS.get(arguments.backend)
    if kind and (reason := kind.why_not()):
        out.print(
            Text(
                f"There is no {kind.name} cluster here: {reason}. The tour uses the local backend.",
                style="yellow",
            )
        )
        arguments.backend = "local"
    return 0 if asyncio.run((lab if arguments.lab else tour)(arguments.backend)) else 1


if __name__ == "__main__":
    sys.exit(main())
