"""Kernels in containers of a Docker engine on this machine: time from nothing to the first reply.

Each start makes a new container. The image is there. Four cases are interleaved (`on_pods.py`):

plain              plain Jupyter on this machine, without a container
roost              a container of roost
container          a container whose command is the kernel
gateway-default    the same, created and awaited as Gateway Provisioners 0.5 does it

All containers have the same rights, 512 MiB as their limit, and CPUs by weight. `container` is created and started by
this process, which connects to its address and sends a request.

In `gateway-default`, a Python process of its own imports the package `docker` and runs the container. Every 0.5 s the
gateway lists the containers, until it is running. Left out here: RSA, and the kernel's report of its ports.

The stages are those of `on_pods.py`; leased is created and started. For `container`: created, reply.

Claims (medians): roost ≤ 1.15 × container, roost ≤ gateway-default. Without an engine the script prints a note
and exits with 77.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
import uuid
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from on_pods import (
    GATEWAY_OPTIONS,
    MEMORY_BYTES,
    create_by_default,
    plain_life,
    reply_of_gateway,
    rest,
    roost_life,
)
from page_tables import PLAIN_JUPYTER, PageTable

from roost.bench.report import SKIPPED, Report, interleave, parser
from roost.bench.runs import read_rounds
from roost.bench.world import PLAIN, ROOST, elapsed_ms, private_world, write_config, write_kernelspec

sys.path.append(str(Path(__file__).parents[1] / "tests"))

if TYPE_CHECKING:  # it imports the package `docker`
    from kit.clusters.docker_engine import DockerEngine
CPUS = 0.5
KERNELSPEC = "boxed"
RUN = """
import json, sys
import docker
options = json.load(sys.stdin)
docker.DockerClient(base_url=sys.argv[1]).containers.run(detach=True, **options)
"""
TABLE = PageTable(
    name="on_docker",
    columns={
        PLAIN_JUPYTER: "start/plain",
        "roost": "start/roost",
        "container whose command is the kernel": "start/{}",
    },
    rows={"created by one call": "container", "by the gateway's defaults": "gateway-default"},
    ratios={"roost ÷ container": ("roost", "container whose command is the kernel")},
    corner="start → first `execute_reply`",
)
STAGES = PageTable(
    name="on_docker-stages",
    columns={"roost": "stage {}/roost"},
    rows={
        "container created and started": "leased",
        "→ the agent has answered": "granted",
        "→ the kernel's ports are open": "launched",
        "→ reply": "reply",
    },
    corner="stage of roost's start",
)


def prepare(engine: DockerEngine, root: Path) -> None:
    """Write roost's configuration and the kernelspec."""
    from kit.clusters.docker_engine import IMAGE

    identity = root / "identity"
    identity.mkdir(mode=0o700)
    backend = {"address": engine.address, "image": IMAGE, "identity_file": str(identity / "keys.json")}
    write_config(root, {"RoostDockerBackend": backend})
    asks = {"backend": "docker", "cpus": CPUS, "memory": MEMORY_BYTES}
    write_kernelspec(root / "jupyter_path" / "kernels" / KERNELSPEC, ROOST, asks, python="python3")


async def roost_container(engine: DockerEngine) -> dict[str, float]:
    """Run one kernel in a container of roost. Return stage → milliseconds."""
    took, _ = await roost_life("docker", KERNELSPEC, partial(count_containers, engine))
    return took


async def kernel_container(engine: DockerEngine, *, is_default: bool = False) -> dict[str, float]:
    """Run one kernel as the command of a container. Return stage → milliseconds."""
    name, key = f"gateway-{uuid.uuid4().hex[:12]}", uuid.uuid4().hex
    options = container_options(name, key)
    began = time.perf_counter()
    try:
        find = partial(find_address, engine, name)
        if is_default:
            address = await create_by_default(find, RUN, engine.address, content=options)
        else:
            await asyncio.to_thread(run, engine, options)
            address = await asyncio.to_thread(find) or ""
        created_ms = elapsed_ms(began)
        reply_ms = await reply_of_gateway(address, key)
        return {"start": elapsed_ms(began), "stage created": created_ms, "stage reply": reply_ms}
    finally:
        await asyncio.to_thread(engine.run, "rm", "--force", name)
        await rest(partial(count_containers, engine))


def container_options(name: str, key: str) -> dict[str, Any]:
    """Return what `docker.DockerClient.containers.run` takes, with the rights and limits of roost's containers."""
    from kit.clusters.docker_engine import IMAGE

    return {
        "image": IMAGE,
        "name": name,
        "command": ["python3", "-m", "ipykernel_launcher", f"--Session.key=b'{key}'", *GATEWAY_OPTIONS],
        "environment": {"HOME": "/tmp"},
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "mem_limit": MEMORY_BYTES,
        "memswap_limit": MEMORY_BYTES,
        "cpu_shares": int(CPUS * 1024),
    }


def run(engine: DockerEngine, options: dict[str, Any]) -> None:
    """Create and start a container by two calls of the engine's interface."""
    limits = dict(options)
    image, name, command = (limits.pop(key) for key in ("image", "name", "command"))
    environment = limits.pop("environment")
    with engine.client() as client:
        config = client.create_host_config(**limits)
        client.create_container(image, command, name=name, environment=environment, host_config=config)
        client.start(name)


def find_address(engine: DockerEngine, name: str) -> str | None:
    """Return the address of a container; None until it runs."""
    with engine.client() as client:
        if not any(each["State"] == "running" for each in client.containers(filters={"name": name})):
            return None
        address: str = client.inspect_container(name)["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
        return address


def count_containers(engine: DockerEngine) -> int:
    with engine.client() as client:
        return len(client.containers(all=True))


async def measure(arguments: Namespace, engine: DockerEngine) -> Report:
    rounds = read_rounds(arguments)
    with engine.client() as client:
        version = client.version()["Version"]
    report = Report("on Docker", rounds=rounds, cpus=CPUS, memory_bytes=MEMORY_BYTES, engine=version)
    lives = {
        "plain": plain_life,
        "roost": partial(roost_container, engine),
        "container": partial(kernel_container, engine),
        "gateway-default": partial(kernel_container, engine, is_default=True),
    }
    await interleave(report, lives, rounds=rounds)
    for below, bound in (("container", 1.15), ("gateway-default", 1.0)):
        report.ratio(f"start: roost ÷ {below}", "start/roost", f"start/{below}")
        report.claim(f"start: roost ÷ {below}", at_most=bound)
    return report


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each case (default 20, quick 3)")
    arguments = options.parse_args()
    if importlib.util.find_spec("docker") is None:
        print("a Python package is missing: pip install docker", file=sys.stderr)
        return SKIPPED
    from kit.clusters.docker_engine import DockerEngine, why_not

    if reason := why_not():
        print(reason, file=sys.stderr)
        return SKIPPED
    with DockerEngine() as engine, private_world({"plain": PLAIN}) as root:
        prepare(engine, root)
        report = asyncio.run(measure(arguments, engine))
    return report.finish(arguments)


if __name__ == "__main__":
    sys.exit(main())
