"""The parts that `on_ray.py` and `on_dask.py` share: kernels on a cluster of three nodes, all on this machine.

start, again, interrupt, restart, stop
                as `roost bench start` measures them (`bench/starts.py`). Three cases take turns: plain Jupyter on this
                machine, a kernel with one CPU on the cluster, and one with half a GPU there
60 at once      60 starts at once, until all have replied: kernels per second. The promised CPUs are read meanwhile
first start     with half a GPU, on a new cluster without a service and agents. Its stage `leased` includes the start of
                the node's agent
read            the cluster manager's report on 1,000 nodes → roost's nodes; see the script
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from claims import SKIPPED, Report, parser
from embedded import embedded, why_not
from page_tables import LIFE, PLAIN_JUPYTER, PageTable

from roost.bench.runs import Measurement, read_rounds, run, warm_up
from roost.bench.sides import Side, world
from roost.bench.starts import STAGES, add_first, measure_lives, run_at_once
from roost.bench.world import elapsed_ms
from roost.launchers.daemon.tasks import cancel_all

NODES = 1_000
LEASES_PER_NODE = 2
AT_ONCE = 60
AT_MOST = {"start": 0.17, "again": 0.20}
"""The claimed ratios to plain Jupyter by stage, for a kernel with a CPU and for one with half a GPU."""
CHILD_DEADLINE_S = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCluster:
    """A cluster manager and its measurements."""

    backend: str
    title: str
    package: str
    """The Python package, for its version."""
    script: str
    """The script's file."""
    read: Callable[[int], Mapping[str, list[float]]]
    """Takes a number of rounds, and returns stage → milliseconds."""
    read_bounds: Mapping[str, float]
    """At most these milliseconds, by stage of `read`."""

    def read_in_child(self, rounds: int) -> dict[str, list[float]]:
        """Run `read` in a new process. Return milliseconds by stage."""
        command = [sys.executable, self.script, "--read", str(rounds)]
        done = subprocess.run(
            command, timeout=CHILD_DEADLINE_S, check=True, stdout=subprocess.PIPE, text=True
        )
        result: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
        return result

    def side(self, name: str, **request: float) -> Side:
        return Side(name=name, kernelspec=name, config={"backend": self.backend, **request})


def make_tables(of: MeasuredCluster, readings: Mapping[str, str]) -> tuple[PageTable, PageTable]:
    """Return the tables of a script. `readings` are its rows with stages of `of.read`."""
    on_cpu, on_gpu = f"with a CPU on {of.title}", f"with half a GPU on {of.title}"
    starts = PageTable(
        name=f"on_{of.backend}",
        columns={PLAIN_JUPYTER: "{}/plain", on_cpu: "{}/roost-cpu", on_gpu: "{}/roost-gpu"},
        rows=LIFE,
        ratios={"CPU ÷ plain": (on_cpu, PLAIN_JUPYTER), "GPU ÷ plain": (on_gpu, PLAIN_JUPYTER)},
        packages=(of.package,),
    )
    cluster = PageTable(
        name=f"on_{of.backend}-cluster",
        columns={"roost": "{}"},
        rows={
            f"{of.title}'s part of a start with a CPU": "stage leased/roost-cpu",
            f"{of.title}'s part of a start with half a GPU": "stage leased/roost-gpu",
            "sixty kernels at once": f"{AT_ONCE} at once/roost-tiny",
            "largest promised share of a node's CPUs meanwhile": "largest promised share/roost-tiny",
            "the very first kernel, without a service and agents": "first start/roost-gpu",
            **{label: f"{stage}/{NODES} nodes" for label, stage in readings.items()},
        },
        packages=(of.package,),
    )
    return starts, cluster


async def measure_at_once(report: Report, side: Side) -> None:
    """Start AT_ONCE kernels at once. Add kernels per second and the largest promised share of a node's CPUs.

    Raises `RuntimeError` if not each kernel has a lease of its own.
    """
    client = side.connect()
    most = 0.0

    async def look() -> None:
        nonlocal most
        shares = [node["cpus_promised"] / node["cpus"] for node in await client.nodes()]
        most = max(most, round(max(shares), 6))  # rounds away the error in a sum of many 0.05

    async def look_on() -> None:
        while True:
            await look()
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(look_on())
    try:
        async with run_at_once(report, side, AT_ONCE) as rate:
            await look()
            leases = [kernel.lease_id for kernel in await client.kernels() if kernel.state == "running"]
            if len(leases) != AT_ONCE or len(set(leases)) != AT_ONCE:
                raise RuntimeError(f"{len(leases)} of {AT_ONCE} kernels run, with {len(set(leases))} leases")
    finally:
        await cancel_all({looking})
    report.add(f"{AT_ONCE} at once/{side.name}", rate, "kernels/s")
    report.add(f"largest promised share/{side.name}", most, "share")


def time_calls(rounds: int, call: Callable[[], object]) -> list[float]:
    """Return the milliseconds of each of `rounds` calls."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        took.append(elapsed_ms(began))
    return took


async def measure(of: MeasuredCluster, arguments: Namespace, report: Report, sides: Sequence[Side]) -> None:
    """Measure the starts on a cluster that runs. The last side is for the starts at once."""
    *compared, tiny = sides
    await warm_up(report, sides)
    await measure_lives(report, compared, rounds=read_rounds(arguments))
    names = [side.name for side in compared]
    for stage in STAGES:
        report.compare(stage, names[1:])
    async with run_at_once(report, tiny, AT_ONCE):  # warms interpreters on every node
        pass
    for _ in range(1 if arguments.quick else 5):
        await measure_at_once(report, tiny)
    for stage, bound in AT_MOST.items():
        for name in names[:-1]:
            report.claim(f"{stage}: {name} ÷ plain", at_most=bound)
    most = f"largest promised share/{tiny.name}"
    report.claim(most, report.figure(most).max, at_most=1.0)
    for stage, bound in of.read_bounds.items():
        report.claim(f"{stage}/{NODES} nodes", at_most=bound)


def run_cluster(of: MeasuredCluster, description: str | None) -> int:
    """Run the script of a cluster manager, and return the exit status."""
    options = parser(description)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    options.add_argument("--read", type=int, metavar="N", help="internal: measure N readings and print JSON")
    arguments = options.parse_args()
    if arguments.read:
        print(json.dumps(of.read(arguments.read)))
        return 0
    if reason := why_not(of.backend):
        print(reason, file=sys.stderr)
        return SKIPPED
    on_gpu = of.side("roost-gpu", gpus=0.5)
    sides = [
        of.side("roost-cpu", cpus=1),
        on_gpu,
        Side(name="plain", kernelspec="plain"),
        of.side("roost-tiny", cpus=0.05),
    ]
    report = Report(
        f"on {of.title}", rounds=read_rounds(arguments), nodes=NODES, leases_per_node=LEASES_PER_NODE
    )

    async def measurement(folder: Path) -> None:
        for _ in range(1 if arguments.quick else 3):
            with (
                tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as name,
                embedded(of.backend, Path(name)),
            ):
                await add_first(report, on_gpu, Path(name) / "r")
        with embedded(of.backend, folder):
            for stage, values in of.read_in_child(20 if arguments.quick else 100).items():
                for value in values:
                    report.add(f"{stage}/{NODES} nodes", value, "ms")
            await measure(of, arguments, report, sides)

    @contextmanager
    def prepare() -> Iterator[Measurement]:
        with world(sides) as folder:
            yield lambda: measurement(folder)

    return run(arguments, report, prepare())
