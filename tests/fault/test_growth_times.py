"""How long starts from zero take on a real Ray cluster with each of Ray's autoscalers, and which part of it is roost's.

    ROOST_ROUNDS=10 pytest -s -m fault_long tests/fault/test_growth_times.py

Each round posts kernels to a real Jupyter Server while the cluster has no worker node. It then ends them, and waits
until the node is gone. All clocks are this machine's `time.time`:

- POST and the reply to a cell: the front end's. The reply is an `execute_reply` of the kernel itself.
- asked and created: those of Ray's GCS, which notes both for each placement group, in ms.
- launched: that of the provider of nodes when the autoscaler asks it for a machine.
- held, noted and running: those of the service's events. `held`: the service knows on which node Ray has created the
  group. `noted`: the node's agent has noted the lease, and the devices are known. `running`: the kernel's process runs.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from server import JupyterServer, jupyter_server

from kit.clusters.ray.elastic_raylets import ElasticRaylets
from kit.clusters.ray.elastic_world import Elastic, grown_by_kernels, until
from kit.jupyter.front_end import front_end
from kit.jupyter.kernelspecs import kernelspecs
from roost.bench.clusters.raylets import why_not
from roost.testing.deadlines import allow_s

pytestmark = [pytest.mark.fault_long, pytest.mark.skipif(why_not() is not None, reason=str(why_not()))]

ROUNDS = int(os.environ.get("ROOST_ROUNDS", "1"))
NODE_S = 120.0
"""How long a node may take to start or to end on a busy machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """When a start from zero reached each step, in seconds since the epoch."""

    posted: float
    asked: float
    launched: float
    created: float
    held: float
    noted: float
    running: float
    replied: float


COLUMNS: dict[str, Callable[[Start], float]] = {
    "POST -> asked": lambda start: start.asked - start.posted,
    "asked -> launched": lambda start: start.launched - start.asked,
    "launched -> created": lambda start: start.created - start.launched,
    "created -> held": lambda start: start.held - start.created,
    "created -> noted": lambda start: start.noted - start.created,
    "noted -> running": lambda start: start.running - start.noted,
    "held -> reply": lambda start: start.replied - start.held,
    "POST -> reply": lambda start: start.replied - start.posted,
}
"""The columns of the printed table, in seconds. From asked to created it is the cloud's time, and Ray's."""


@pytest.fixture(scope="module", params=["second", "first"])
def elastic_cluster(request: pytest.FixtureRequest, module_runtime_dir: Path) -> Iterator[ElasticRaylets]:
    with grown_by_kernels(module_runtime_dir, is_second=request.param == "second") as cluster:
        yield cluster


@pytest.fixture
async def server(
    elastic_cluster: ElasticRaylets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[JupyterServer]:
    """Start a Jupyter Server with roost's extension. Its kernelspecs ask for a GPU (`whole`) and for half of one."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    for name, gpus in (("whole", 1), ("half", 0.5)):
        kernelspecs(tmp_path, name, backend="ray", config={"gpus": gpus})
    options = ["--ServerApp.jpserver_extensions={'roost': True}"]
    async with jupyter_server(tmp_path, options=options) as started:
        yield started


@asynccontextmanager
async def from_zero(cluster: ElasticRaylets, server: JupyterServer) -> AsyncIterator[Elastic]:
    """Yield a cluster without worker nodes. At the end, end the server's kernels, and wait until their node is gone."""
    elastic = Elastic(cluster)
    assert (elastic.workers(), elastic.groups(), elastic.raylets()) == ([], [], [])
    try:
        yield elastic
    finally:
        _, kernels = await server.api("GET", "kernels")
        for kernel in kernels:
            await server.api("DELETE", f"kernels/{kernel['id']}")
        for gone in (
            lambda: not elastic.groups(),
            lambda: not elastic.raylets(),
            lambda: not elastic.workers(),
        ):
            await asyncio.to_thread(until, gone, NODE_S)
        elastic.close()


async def start(server: JupyterServer, kernelspec: str) -> tuple[str, float, float]:
    """Start a kernel and run a cell. Return the kernel's id, when it was asked for, and when the cell's reply came."""
    posted = time.time()
    status, kernel = await server.api("POST", "kernels", {"name": kernelspec})
    assert status == 201, kernel
    async with front_end(server, kernel["id"]) as front:
        messages = await front.ended(await front.run("6 * 7"))
    offset = time.time() - time.monotonic()
    (reply,) = [message for message in messages if message["msg_type"] == "execute_reply"]
    assert reply["content"]["status"] == "ok"
    return kernel["id"], posted, reply["at"] + offset


def read_steps(elastic: Elastic, kernel_id: str, posted: float, replied: float) -> Start:
    def first(kind: str, node: str = "") -> float:
        """Return when the kernel had its first event of this kind, on any node or on this one."""
        events = [event for event in elastic.events if event.kernel and event.kernel.id == kernel_id]
        for event in events:
            assert event.kernel is not None
            if event.kind == kind and node in ("", event.kernel.node_id):
                return event.at
        shown = [
            (event.kind, event.kernel and event.kernel.node_id, event.detail, event.at) for event in events
        ]
        raise AssertionError(f"no event {kind!r} among {shown}")

    (launch,), (node,) = elastic.launches(), elastic.workers()
    asked, created = elastic.read_group_times()[kernel_id]
    return Start(
        posted=posted,
        asked=asked,
        launched=launch.at,
        created=created,
        held=first("queued", node),
        noted=first("leased"),
        running=first("running"),
        replied=replied,
    )


def format_row(name: object, values: Sequence[float]) -> str:
    cells = (f"{value:.2f}".rjust(len(column)) for column, value in zip(COLUMNS, values, strict=True))
    return "  ".join([str(name).rjust(6), *cells])


def describe_load() -> str:
    averages = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return f"load of {os.cpu_count()} CPUs (1, 5, 15 min): {averages}"


def print_summary(starts: Sequence[Start]) -> None:
    columns = [[difference(start) for start in starts] for difference in COLUMNS.values()]
    print("  ".join([f"n = {len(starts)}".rjust(6), *COLUMNS]))
    for name, summarise in (("median", statistics.median), ("min", min), ("max", max)):
        print(format_row(name, [summarise(column) for column in columns]))


@pytest.mark.timeout(300 + 300 * ROUNDS)
async def test_starts_from_zero(elastic_cluster: ElasticRaylets, server: JupyterServer) -> None:
    starts: list[Start] = []
    print(f"\n{describe_load()}")
    print("  ".join(["s".rjust(6), *COLUMNS, "load of 1 min"]))
    for number in range(1, ROUNDS + 1):
        async with from_zero(elastic_cluster, server) as elastic:
            starts.append(read_steps(elastic, *await start(server, "whole")))
            assert elastic.launched() == ["gpu"]
        assert elastic.launched() == ["gpu"]
        row = format_row(number, [difference(starts[-1]) for difference in COLUMNS.values()])
        print(f"{row}  {os.getloadavg()[0]:.1f}", flush=True)
    print_summary(starts)
    print(describe_load())


@pytest.mark.timeout(300 + 300 * ROUNDS)
async def test_four_halves_of_a_gpu_bring_one_node(
    elastic_cluster: ElasticRaylets, server: JupyterServer
) -> None:
    print()
    for number in range(1, ROUNDS + 1):
        async with from_zero(elastic_cluster, server) as elastic:
            starts = await asyncio.gather(*(start(server, "half") for _ in range(4)))
            kernels = elastic.client.kernels().result(allow_s(10))
            assert len({kernel.node_id for kernel in kernels}) == 1
            assert sorted(kernel.device_ids for kernel in kernels) == [("0",), ("0",), ("1",), ("1",)]
        assert elastic.launched() == ["gpu"]
        taken = sorted(replied - posted for _, posted, replied in starts)
        replies = ", ".join(f"{each:.1f}" for each in taken)
        print(f"{number}: one launch; the replies came {replies} s after POST", flush=True)
