"""Kernels through `roost gateway`: one person's starts, and those of many people at once.

start       POST /api/kernels sent → websocket open → reply to a request that is sent then, by turns through the gateway
            and through a Jupyter Server of one's own with roost
crowd       PEOPLE people begin at once. Each starts KERNELS kernels, one after the other, and keeps them.
            ms: each start. p95: their 95th percentile. starts a second: of all people. failed: starts without a reply.
            MiB: the memory (PSS) of the server and of all that it has started, once all kernels are there

With `--enterprise PYTHON`, an Enterprise Gateway has the same crowd. PYTHON is that of an environment with
enterprise_gateway and ipykernel. Claims: start through the gateway ≤ 1.1 × one's own server; no start of roost's fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
from claims import Report, interleave, parser
from page_tables import PageTable
from through_server import answer_of, life, open_notebook, open_server, post

from roost.bench.world import (
    MIB,
    PLAIN,
    ROOST,
    RUNTIME,
    elapsed_ms,
    private_world,
    processes,
    pss_bytes,
    write_kernelspec,
)
from roost.testing.clusters.free_ports import free_port

sys.path.append(str(Path(__file__).parents[1] / "docs/examples"))

from server import JupyterServer, until_it_listens

PEOPLE, KERNELS = 25, 10
REST_S = 5.0
"""How long the kernels rest before their memory is read."""
_END_S = 60.0
_ENTERPRISE = "Enterprise Gateway"
TABLE = PageTable(
    name="many_people",
    columns={"one's own server": "{}/own server", "roost gateway": "{}/gateway"},
    rows={
        "start: POST answered": "start: POST answered",
        "start → first `execute_reply`": "start",
        "restart → first `execute_reply`": "restart",
        "round trip": "round trip",
    },
    ratios={"gateway ÷ own server": ("roost gateway", "one's own server")},
    has_picture=False,
)
CROWD_TABLE = PageTable(
    name="many_people-crowd",
    columns={"roost gateway": "{}/gateway", _ENTERPRISE: f"{{}}/{_ENTERPRISE}"},
    rows={
        "start → first `execute_reply`": "crowd",
        "the same, 95th percentile": "crowd p95",
        "starts a second": "starts a second",
        "memory of all": "memory of all",
        "starts that failed": "failed",
    },
)
_CONFIG = """
c.RoostGateway.shared_accounts = ["local"]
c.RoostGateway.inherited_envs = ["IPYTHONDIR", "JUPYTER_*", "ROOST_*"]
c.ServerApp.allow_root = True
c.ServerApp.port = {port}
"""


@asynccontextmanager
async def run_server(
    words: Sequence[str], port: int, tokens: Sequence[str]
) -> AsyncIterator[list[JupyterServer]]:
    """Run a server for many people. Yield it once for each token."""
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *words, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        seen = [JupyterServer(pid=process.pid, port=port, token=token, log=[]) for token in tokens]
        await until_it_listens(seen[0], process)
        yield seen
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), _END_S)


@asynccontextmanager
async def open_gateway(people: int) -> AsyncIterator[list[JupyterServer]]:
    """Run `roost gateway` for this many people, each with a token of her own."""
    roost = (sys.executable, "-m", "roost", "gateway")
    port, folder = free_port(), Path(os.environ["JUPYTER_CONFIG_DIR"])
    folder.mkdir(exist_ok=True)
    (folder / "roost_gateway_config.py").write_text(_CONFIG.format(port=port))
    tokens = []
    for number in range(people):
        words = (*roost, "token", "add", f"person-{number}", "--json")
        done = await asyncio.to_thread(subprocess.run, words, check=True, capture_output=True, timeout=_END_S)
        tokens.append(json.loads(done.stdout)["token"])
    async with run_server(roost, port, tokens) as servers:
        yield servers


@asynccontextmanager
async def open_enterprise(python: str, people: int) -> AsyncIterator[list[JupyterServer]]:
    """Run an Enterprise Gateway, whose callers need no token."""
    port = free_port()
    settings = (f"port={port}", "ip=127.0.0.1", "unauthorized_users=nobody")  # it refuses root otherwise
    words = (python, "-m", "enterprise_gateway", *(f"--EnterpriseGatewayApp.{each}" for each in settings))
    async with run_server(words, port, [""] * people) as servers:
        yield servers


async def crowd(report: Report, side: str, servers: Sequence[JupyterServer], name: str, kernels: int) -> None:
    """Let all people start their kernels, and add the figures of this side to the report."""
    took_ms: list[float] = []

    async def start_all(server: JupyterServer) -> None:
        for _ in range(kernels):
            began = time.perf_counter()
            with suppress(RuntimeError, OSError, asyncio.TimeoutError):
                kernel = await post(server, "kernels", {"name": name})
                async with open_notebook(server, kernel["id"]) as notebook:
                    await notebook.run("1+1")
                took_ms.append(elapsed_ms(began))

    began = time.perf_counter()
    await asyncio.gather(*map(start_all, servers))
    report.add(f"starts a second/{side}", len(took_ms) / (time.perf_counter() - began), "")
    report.add(f"failed/{side}", len(servers) * kernels - len(took_ms), "")
    for each in took_ms:
        report.add(f"crowd/{side}", each, "ms")
    report.add(f"crowd p95/{side}", statistics.quantiles(took_ms, n=20)[-1], "ms")
    await asyncio.sleep(REST_S)
    report.add(f"memory of all/{side}", measure_memory(servers[0].pid) / MIB, "MiB")
    for server in servers:
        for kernel in (await server.api("GET", "kernels"))[1]:
            await server.api("DELETE", f"kernels/{kernel['id']}")


def measure_memory(pid: int) -> int:
    """Return the bytes of a server, of its children, and of roost's processes."""
    own = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(pss_bytes(each) for each in {each.pid for each in (*own, *processes(os.environ[RUNTIME]))})


async def measure(arguments: Namespace, root: Path) -> Report:
    rounds = 3 if arguments.quick else arguments.rounds
    people, kernels = (3, 2) if arguments.quick else (PEOPLE, KERNELS)
    report = Report("many_people", rounds=rounds, people=people, kernels=kernels)
    async with open_server("roost", root) as own, open_gateway(1) as (gateway,):
        await answer_of(own)
        sides = {"own server": partial(life, own, "roost"), "gateway": partial(life, gateway, "roost")}
        await interleave(report, sides, rounds=rounds, warm_up=3)
    report.ratio("start: gateway ÷ own server", "start/gateway", "start/own server")
    report.claim("start: gateway ÷ own server", at_most=1.1)
    async with open_gateway(people) as servers:
        await crowd(report, "gateway", servers, "roost", kernels)
    report.claim("failed/gateway", at_most=0)
    if arguments.enterprise:
        folder = Path(os.environ["JUPYTER_PATH"]) / "kernels/enterprise"
        write_kernelspec(folder, PLAIN, python=arguments.enterprise)
        async with open_enterprise(arguments.enterprise, people) as servers:
            await crowd(report, _ENTERPRISE, servers, "enterprise", kernels)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=20, help="repetitions of each start (20)")
    options.add_argument(
        "--enterprise", metavar="PYTHON", default="", help="measure an Enterprise Gateway, too"
    )
    arguments = options.parse_args()
    with private_world({"roost": ROOST}) as root:
        notebooks = root / "notebooks"
        notebooks.mkdir()
        report = asyncio.run(measure(arguments, notebooks))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
