"""A tour of roost: four kernels through a real Jupyter Server, a notebook on each, and nothing left at the end.

    python docs/examples/tour.py          what `make run` does
    python docs/examples/tour.py --lab    the same kernelspecs in JupyterLab, until Ctrl-C

Everything is private to the tour: folders, port, token, scheduler and agent. It exits with 1 if a notebook
failed, if the kernel that no node can hold was not refused, or if anything was left behind.
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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from proof import RUNTIME, Check, Held, check, end, held
from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from server import CellFailed, JupyterServer, Output, jupyter_server, run_notebook

HERE = Path(__file__).resolve().parent
GPUS = 2
IDLE_EXIT_S = 2
WARM_TIMEOUT_S = 60.0
LEAVE_TIMEOUT_S = 15.0
COMMAND_TIMEOUT_S = 30.0

out = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """One stop of the tour: a kernelspec with what its kernels ask for, and the notebook that runs on one."""

    name: str
    title: str
    notebook: str
    asks: Mapping[str, Any] = field(default_factory=dict)


STOPS = (
    Stop(name="roost-python", title="Python on roost", notebook="where.ipynb"),
    Stop(
        name="roost-sized",
        title="Python, 1 CPU and 512 MiB",
        notebook="numerics.ipynb",
        asks={"cpus": 1, "memory": "512MiB"},
    ),
    Stop(name="roost-half-gpu", title="Python, half a GPU", notebook="gpu_share.ipynb", asks={"gpus": 0.5}),
    Stop(name="roost-exec", title="Python, not forked", notebook="output.ipynb", asks={"fork": False}),
)
TOO_BIG = Stop(name="roost-too-big", title="Python, 64 TiB", notebook="", asks={"memory": "64TiB"})


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The tour's private folders."""

    root: Path
    runtime: Path
    jupyter_runtime: Path
    notebooks: Path


@contextmanager
def private_world(backend: str) -> Iterator[World]:
    """Folders, configuration and kernelspecs of the tour's own, removed at the end with whatever still runs there.

    Works through this process's environment, which every part inherits.
    """
    root = Path(tempfile.mkdtemp(prefix="roost-", dir="/tmp"))  # short: a socket's path ends at 107 bytes
    folders = {name: root / name.lower() for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")}
    world = World(
        root=root, runtime=root / "r", jupyter_runtime=root / "jupyter_runtime", notebooks=root / "notebooks"
    )
    folders |= {RUNTIME: world.runtime, "JUPYTER_RUNTIME_DIR": world.jupyter_runtime}
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("KERNEL_", "JUPYTER_", "JPY_"))]:
        del os.environ[name]
    os.environ.update({name: str(folder) for name, folder in folders.items()})
    try:
        configure(Path(folders["JUPYTER_CONFIG_DIR"]))
        install_kernelspecs(backend)
        world.notebooks.mkdir()
        for notebook in HERE.glob("*.ipynb"):
            shutil.copy(notebook, world.notebooks)
        yield world
    finally:
        end(world.runtime)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(root, ignore_errors=True)


def configure(folder: Path) -> None:
    """The operator's file: parts that leave quickly, and GPUs by declaration where the machine has none."""
    folder.mkdir()
    lines = [f"c.RoostScheduler.idle_exit_s = {IDLE_EXIT_S}"]
    if not shutil.which("nvidia-smi"):
        lines += [f"c.RoostLocalBackend.gpus = {GPUS}", "c.RoostLocalBackend.gpu_model = 'declared'"]
    (folder / "jupyter_roost_config.py").write_text("\n".join(lines) + "\n")


def install_kernelspecs(backend: str) -> None:
    """As `roost kernelspec install --from python3 --name ...` does."""
    from roost.provisioners.kernelspecs import install

    for stop in (*STOPS, TOO_BIG):
        install("python3", name=stop.name, config={"backend": backend, **stop.asks}, display_name=stop.title)


async def roost(*arguments: str, backend: str) -> dict[str, Any]:
    """What `roost ARGUMENTS --json` prints."""
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


async def warm(backend: str) -> str:
    """Have a warm process ready before the first kernel asks, as an operator's script would; a sentence about it."""
    import roost as library

    began = time.monotonic()
    client = library.connect(backend)
    try:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        await asyncio.wait_for(client.warm(argv, os.environ), WARM_TIMEOUT_S)
    except library.RoostError as error:
        return f"no warm process to fork from: {error}"
    finally:
        await asyncio.to_thread(client.close)
    return f"scheduler, agent and a zygote for this Python in {time.monotonic() - began:.1f} s"


async def visit(server: JupyterServer, number: int, stop: Stop, backend: str) -> str | None:
    """Start one kernel, run its notebook and print all about it. Returns its id, None if it failed."""
    out.print(Rule(f"[bold]{number} · {stop.title}[/] · {stop.notebook}", align="left", style="cyan"))
    began = time.perf_counter()
    status, answer = await server.api("POST", "kernels", {"name": stop.name})
    started_ms = (time.perf_counter() - began) * 1000
    if status != 201:
        out.print(f"[red]not started[/] (HTTP {status}): {answer and answer.get('message')}")
        return None
    kernel_id: str = answer["id"]
    try:
        cells = await run_notebook(server, kernel_id, HERE / stop.notebook)
    except (CellFailed, asyncio.TimeoutError, ConnectionError) as error:
        out.print(Text(f"the notebook failed: {str(error) or type(error).__name__}", style="red"))
        return None
    ran_ms = (time.perf_counter() - began) * 1000
    kernels = (await roost("kernels", backend=backend))["kernels"]
    describe(next(kernel for kernel in kernels if kernel["id"] == kernel_id))
    row("in all", f"POST answered after {started_ms:.0f} ms, notebook done after {ran_ms:.0f} ms")
    for source, outputs in cells:
        show_cell(source, outputs)
    return kernel_id


def describe(kernel: Mapping[str, Any]) -> None:
    """Where a kernel went, why, and how long each stage took, as `roost kernels --json` tells it."""
    devices = f", GPU {', '.join(kernel['device_ids'])}" if kernel["device_ids"] else ""
    row("went to", f"{kernel['node_id']}{devices}, process {kernel['pid']} ({kernel['how']})")
    decision = kernel["decision"]
    if decision:
        row("because", decision["reason"])
        row("policy", f"{decision['policy']}; {len(decision['refusals'])} refusals")
    row("stages", " · ".join(f"{name} {value:.1f} ms" for name, value in kernel["timing_ms"].items()))


def indented(text: Text, by: int) -> Padding:
    return Padding(text, (0, 0, 0, by), expand=False)


def row(name: str, value: str) -> None:
    """A name, and its value in a column of its own."""
    line = Table.grid(padding=(0, 1))
    line.add_column(min_width=8, style="dim")
    line.add_column(overflow="fold")
    line.add_row(name, Text(value))
    out.print(Padding(line, (0, 0, 0, 2), expand=False))


def show_cell(source: str, outputs: list[Output]) -> None:
    """The first line of the code, and all of what it said."""
    first, *rest = source.splitlines()
    out.print(indented(Text(f"› {first}{' …' if rest else ''}", style="dim", no_wrap=True), 2))
    for output in outputs:
        kind = "" if output.kind in ("stdout", "text/plain") else f"[{output.kind}] "
        text = output.text.splitlines()[-1] if output.kind == "error" else output.text.rstrip("\n")
        out.print(indented(Text(f"{kind}{text}", style="red" if output.kind == "error" else ""), 4))


async def is_refused(server: JupyterServer) -> bool:
    """Ask for what no node could ever hold: the answer is one sentence, at once."""
    out.print(
        Rule("[bold]A request that no node could hold[/] · 64 TiB of memory", align="left", style="cyan")
    )
    began = time.perf_counter()
    status, answer = await server.api("POST", "kernels", {"name": TOO_BIG.name})
    took_ms = (time.perf_counter() - began) * 1000
    if status == 201:
        out.print("[red]it was started[/]")
        return False
    row("refused", f"after {took_ms:.0f} ms, HTTP {status}")
    row("because", str(answer and answer.get("message")))
    return True


async def stop_kernels(server: JupyterServer) -> list[str]:
    """DELETE every kernel; returns what still holds something, which is nothing."""
    _, running = await server.api("GET", "kernels")
    began = time.perf_counter()
    answers = await asyncio.gather(*(server.api("DELETE", f"kernels/{kernel['id']}") for kernel in running))
    row("kernels", f"{len(running)} stopped in {(time.perf_counter() - began) * 1000:.0f} ms")
    return [f"DELETE answered {status}" for status, _ in answers if status != 204]


async def leases_left(backend: str) -> Check:
    """Ask the scheduler what is still promised, and which kernels it knows."""
    kernels = (await roost("kernels", backend=backend))["kernels"]
    nodes = (await roost("nodes", backend=backend))["nodes"]
    promised = [
        f"{node['id']}: {name} {node[name]}"
        for node in nodes
        for name in ("cpus_promised", "memory_promised_bytes", "gpus_promised", "kernels")
        if node[name]
    ]
    return Check(what="no kernels, no leases", left=(*(kernel["id"] for kernel in kernels), *promised))


def prove(first: list[Check], before: Held, world: World, kernel_ids: list[str]) -> bool:
    """Wait for everything to leave by itself, print what is left, and say whether that is nothing."""
    began = time.monotonic()
    psutil.wait_procs(before.processes, timeout=LEAVE_TIMEOUT_S)
    checks = first + check(before, world.runtime, [world.runtime, world.jupyter_runtime], kernel_ids)
    for one in checks:
        out.print(f"  {'[red]✗[/]' if one.left else '[green]✓[/]'} {one.what}")
        for left in one.left:
            out.print(indented(Text(left, style="red"), 4))
    row("waited", f"{time.monotonic() - began:.1f} s for scheduler, agent and zygotes to leave by themselves")
    return not any(one.left for one in checks)


async def tour(backend: str) -> bool:
    """All of it; true if everything went as it should."""
    began = time.monotonic()
    with private_world(backend) as world:
        async with jupyter_server(world.notebooks) as server:
            row("server", f"Jupyter Server on 127.0.0.1:{server.port}, process {server.pid}")
            row("warm", await warm(backend))
            visits = [
                await visit(server, number, stop, backend) for number, stop in enumerate(STOPS, start=1)
            ]
            kernel_ids = [kernel_id for kernel_id in visits if kernel_id]
            is_good = len(kernel_ids) == len(STOPS) and await is_refused(server)
            if not is_good:
                out.print(Text("\n".join(server.log[-30:]), style="dim"))
            before = held(world.runtime)
            out.print(Rule("[bold]The end[/]", align="left", style="cyan"))
            left = await stop_kernels(server)
            checks = [Check(what="kernels deleted", left=tuple(left)), await leases_left(backend)]
        is_good &= prove(checks, before, world, kernel_ids)
        root = world.root
    is_good &= not root.exists()
    verdict = "[green]nothing is left[/]" if is_good else "[red]something went wrong[/]"
    out.print(f"  {verdict} · {time.monotonic() - began:.0f} s in all")
    return is_good


async def lab(backend: str) -> bool:
    """JupyterLab with the tour's kernelspecs, until Ctrl-C or SIGTERM."""
    with private_world(backend) as world:
        until = asyncio.Event()
        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, until.set)
        async with jupyter_server(world.notebooks, program="jupyterlab") as server:
            out.print(f"JupyterLab is at [bold]{server.url}[/]", soft_wrap=True)
            out.print("The notebooks there are copies. Ctrl-C stops everything.")
            await until.wait()
            before = held(world.runtime)
            _, running = await server.api("GET", "kernels")
            await stop_kernels(server)
        return prove([], before, world, [kernel["id"] for kernel in running])


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--backend", default="local", choices=["local"], help="where kernels run (local)")
    options.add_argument("--lab", action="store_true", help="open JupyterLab instead, until Ctrl-C")
    arguments = options.parse_args()
    return 0 if asyncio.run((lab if arguments.lab else tour)(arguments.backend)) else 1


if __name__ == "__main__":
    sys.exit(main())
