"""kill -9 of each part under kernels on a real Ray cluster: which kernels live on, which end, and for which reason."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from server import jupyter_server

from kit.clusters.faults import read_command
from kit.jupyter.front_end import errors, front_end
from kit.jupyter.kernelspecs import (
    IPYKERNEL,
    kernelspecs,
    roost_metadata,
    search_one_folder,
    write_kernelspec,
)
from kit.jupyter.notebook import Notebook
from kit.machine.daemons import daemon_pids, kill, settle, wait_gone
from roost.placement.model import Request
from roost.scheduler.client.client import Client, connect, disconnect
from roost.scheduler.errors import BackendUnavailable
from roost.testing.clusters.raylets import Machine, Raylets, why_not
from roost.testing.deadlines import allow_s, until
from roost.testing.leftovers import VARIABLE, private_runtime_dir

MACHINES = (Machine(cpus=4, gpus=2, gpu_model="T4"), Machine(cpus=2, gpus=2, gpu_model="A100"))
GROUPS = """
import ray, sys
ray.init(address=sys.argv[1], namespace="roost", log_to_driver=False, configure_logging=False)
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
for entry in placement_group_table().values():
    if entry["state"] != "REMOVED":
        print(entry["name"])
        if sys.argv[2:] and sys.argv[2] in entry["name"]:
            remove_placement_group(ray.util.get_placement_group(entry["name"]))
"""

DRAIN = """
import ray, sys
from ray._raylet import GcsClient
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
(node,) = [node for node in ray.nodes() if node["NodeManagerAddress"] == sys.argv[2]]
accepted, why = GcsClient(address=sys.argv[1]).drain_node(node["NodeID"], 2, "test", 2**62)
sys.exit(0 if accepted else why)
"""


@pytest.fixture(scope="module")
def raylets(private_environment: None) -> Iterator[Raylets]:
    """Start the cluster of this module, whose tests kill nodes. The first node stays."""
    if reason := why_not():
        pytest.skip(reason)
    with private_runtime_dir() as folder, Raylets(*MACHINES, environment={VARIABLE: folder}) as started:
        yield started


@pytest.fixture
def raylets_runtime_dir(
    runtime_dir: Path, raylets: Raylets, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    monkeypatch.setenv("RAY_ADDRESS", raylets.address)
    yield runtime_dir
    disconnect()
    settle(runtime_dir)


@pytest.fixture
async def notebooks(raylets_runtime_dir: Path, tmp_path: Path) -> AsyncIterator[Callable[..., object]]:
    """Return a function that opens a notebook with this configuration. At the end no kernel and no group is left."""
    opened: list[Notebook] = []

    async def open_one(**config: object) -> Notebook:
        specs = kernelspecs(
            tmp_path / str(len(opened)), config={"backend": "ray", "launch_timeout": allow_s(60), **config}
        )
        notebook = Notebook("roosted")
        notebook.manager.kernel_spec_manager = specs
        await notebook.open()
        opened.append(notebook)
        return notebook

    yield open_one
    for notebook in opened:
        await notebook.close()
    assert await service().kernels() == []
    assert groups(os.environ["RAY_ADDRESS"]) == []


def service() -> Client:
    return connect("ray")


def groups(address: str, remove: str = "") -> list[str]:
    """Return the names of roost's placement groups in Ray. Remove those with `remove` in their names."""
    command = [sys.executable, "-c", GROUPS, address, *filter(None, [remove])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=allow_s(60), check=True)
    return [line for line in done.stdout.split("\n") if line.startswith("roost:")]  # Ray prints there as well


def agents(cluster: Raylets) -> list[psutil.Process]:
    return [one for one in cluster.processes() if "roost.launchers.agent.main" in read_command(one)]


async def test_the_agent(notebooks: Callable[..., object], raylets: Raylets) -> None:
    notebook = await notebooks(cpus=0.5)
    await notebook.run("mine = 42")
    for agent in agents(raylets):
        kill(agent.pid)
    await asyncio.gather(*(notebooks(cpus=0.1) for _ in range(4)))  # all at once: no start may fail
    assert await notebook.value("mine") == "42"
    await notebook.restart()
    assert (await notebook.run("mine"))["ename"] == "NameError"


async def test_agents_that_are_silent_when_the_next_service_comes(
    notebooks: Callable[..., object], raylets: Raylets, raylets_runtime_dir: Path
) -> None:
    """Ray shows their kernels' groups. Only the agents know whether kernels run there, so none is ended."""
    notebook = await notebooks(gpus=0.5)
    await notebook.run("mine = 42")
    silent = agents(raylets)
    for agent in silent:
        agent.suspend()
    try:
        kill(*daemon_pids(raylets_runtime_dir, "scheduler"))

        async def is_unknown() -> bool:
            with contextlib.suppress(BackendUnavailable):  # it waits for the silent agents before it serves
                return (await service().kernel(notebook.manager.kernel_id)).state == "unknown"
            return False

        await until(is_unknown, "the next service shows the kernel as unknown")
        for _ in range(35):  # longer than two readings, and than a start may take to be repeated
            await asyncio.sleep(1)
            assert (await service().kernel(notebook.manager.kernel_id)).state == "unknown"
        with pytest.raises(Exception, match=r"nobody knows whether kernel .* still runs: the agent of"):
            await notebook.manager.interrupt_kernel()
        assert await notebook.manager.is_alive()
    finally:
        for agent in silent:
            agent.resume()
    assert await notebook.value("mine") == "42"

    async def is_running() -> bool:
        return (await service().kernel(notebook.manager.kernel_id)).state == "running"

    await until(is_running, "the service knows that the kernel runs")
    await notebook.interrupt()
    assert await notebook.value("mine") == "42"


def find_idle_workers(raylets: Raylets) -> list[psutil.Process]:
    found = []
    for process in raylets.processes():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if process.cmdline()[:1] == ["ray::IDLE"]:
                found.append(process)
    return found


async def test_a_ray_worker(notebooks: Callable[..., object], raylets: Raylets) -> None:
    """Ray's workers find the devices. A running kernel does not need them."""
    notebook = await notebooks(gpus=1, gpu_models=["T4"])
    await notebook.run("mine = 42")
    # A worker waits for the next claim some seconds after the first start on a node.
    for worker in await until(lambda: find_idle_workers(raylets), "a worker of Ray waits", 30):
        kill(worker.pid)
    assert await notebook.value("mine") == "42"
    other = await notebooks(gpus=1, gpu_models=["T4"])
    assert await other.value("__import__('os').environ['CUDA_VISIBLE_DEVICES']") != await notebook.value(
        "__import__('os').environ['CUDA_VISIBLE_DEVICES']"
    )


async def test_a_group_removed_by_hand(notebooks: Callable[..., object], raylets: Raylets) -> None:
    notebook = await notebooks(cpus=0.5)
    pid = notebook.pid
    assert len(groups(raylets.address, remove=notebook.manager.kernel_id)) == 1
    assert "its placement group was removed" in await notebook.ended(service(), 10)
    assert wait_gone(pid)


async def test_a_raylet(notebooks: Callable[..., object], raylets: Raylets) -> None:
    node = raylets.add_node(Machine(cpus=2, labels={"mine": "yes"}))
    notebook = await notebooks(labels={"mine": "yes"})
    pid = notebook.pid
    assert (await service().kernel(notebook.manager.kernel_id)).node_id == node.address
    asked = Request(labels={"mine": "yes"})
    assert (await service().explain(asked))["placement"]
    killed_at = time.monotonic()
    raylets.kill_raylet(node.address)
    decision = await _until_no_room(asked, 2)  # Ray itself notices after 13 s
    assert "its raylet has ended" in str(decision["refusals"])
    assert not decision["is_never"]
    assert "its node has left the Ray cluster" in await notebook.ended(service(), 10)
    assert wait_gone(pid, 60)
    print(f"The kernel has ended {time.monotonic() - killed_at:.1f} s after the raylet was killed.")


@pytest.mark.long
async def test_a_cell_shows_that_its_node_was_lost(
    raylets_runtime_dir: Path, raylets: Raylets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cell runs in a real Jupyter Server with roost's extension, over the kernel's websocket."""
    node = raylets.add_node(Machine(cpus=2, labels={"shown": "yes"}))
    kernelspecs(tmp_path, config={"backend": "ray", "labels": {"shown": "yes"}})
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    async with jupyter_server(
        tmp_path, options=["--ServerApp.jpserver_extensions={'roost': True}"]
    ) as server:
        _, kernel = await server.api("POST", "kernels", {"name": "roosted"})
        async with front_end(server, kernel["id"]) as front:
            await front.ended(await front.run("mine = 42"))
            cell = await front.run("import time; time.sleep(100)")
            raylets.kill_raylet(node.address)
            await front.until(lambda: errors(front.about(cell)))
            (sentence,) = errors(front.about(cell))
        assert "its node has left the Ray cluster" in sentence[0].lower() + sentence[1:]
        await server.api("DELETE", f"kernels/{kernel['id']}")
    assert await service().kernels() == []


async def test_a_node_that_is_stopped(notebooks: Callable[..., object], raylets: Raylets) -> None:
    node = raylets.add_node(Machine(cpus=2, labels={"other": "yes"}))
    notebook = await notebooks(labels={"other": "yes"})
    pid = notebook.pid
    raylets.stop_node(node.address)
    await notebook.ended(service(), 10)
    assert wait_gone(pid, 60)


async def test_doctor_about_a_node_that_has_left(notebooks: Callable[..., object], raylets: Raylets) -> None:
    """The service knows that the node has left. Nobody is sent to that machine because of its agent."""
    node = raylets.add_node(Machine(cpus=2, labels={"leaves": "yes"}))
    notebook = await notebooks(labels={"leaves": "yes"})
    psutil.Process(node.raylet_pid).terminate()
    await notebook.ended(service(), 10)
    about: dict[str, str] = {}
    says = f"node {node.address} has left the cluster "

    async def is_right() -> bool:  # the kernel may be ending
        nonlocal about
        found = {finding["what"]: finding["level"] for finding in await service().doctor()}
        about = {what: level for what, level in found.items() if node.address in what and level != "not now"}
        return len(about) == 1 and next(iter(about)).startswith(says)

    await until(is_right, lambda: f"doctor says that the node has left: {about}", 60, 0.2)
    assert list(about.values()) == ["warning"]


HOLD = """
import ray, sys, time
ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)
@ray.remote(num_cpus=0, num_gpus=1)
class Trainer:
    def ready(self):
        return True
trainers = [Trainer.remote() for _ in range(3)]
ray.get([trainer.ready.remote() for trainer in trainers])
print("held", flush=True)
time.sleep(600)
"""


async def test_a_waiting_kernel_says_how_many_gpus_actors_hold(
    raylets_runtime_dir: Path, raylets: Raylets
) -> None:
    """Actors have three of four GPUs. The explanation says so, and the notebook's text is made from it."""
    command = [sys.executable, "-c", HOLD, raylets.address]
    actors = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, cwd="/")
    try:
        assert actors.stdout is not None
        while (line := await asyncio.wait_for(actors.stdout.readline(), allow_s(60))).strip() != b"held":
            assert line, "the actors do not start"
        decision: dict[str, Any] = {}

        async def find_others() -> dict[str, Any] | None:
            nonlocal decision
            decision = await service().explain(Request(gpus=2))
            others = decision.get("others") or {"amount": 0}
            return others if others["amount"] == 3 else None

        # Raylets report one after the other.
        others = await until(find_others, lambda: f"the actors are counted: {decision}", 60, 0.1)
        assert (others["resource"], others["amount"], others["of"]) == ("gpus", 3, 4)
        assert others["text"] == "3 of 4 GPUs are held by Ray actors and tasks that roost did not start"
    finally:
        actors.kill()
        await actors.communicate()


async def test_doctor_about_nodes_whose_python_has_no_ipykernel(
    raylets_runtime_dir: Path, raylets: Raylets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """doctor does not say that kernels can start. Each command that it prints is typed as it is printed."""
    python = tmp_path / "bare python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)
    data = search_one_folder(tmp_path / "data", monkeypatch)
    write_kernelspec(data, "half", IPYKERNEL, metadata=roost_metadata(backend="ray", gpus=0.5))
    (tmp_path / "jupyter_roost_config.py").write_text(f"c.RoostRayBackend.python = {str(python)!r}")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "roost").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m roost "$@"\n')
    (bin_ / "roost").chmod(0o755)

    def type_(line: str) -> tuple[int, str]:
        done = subprocess.run(
            line, shell=True, env={**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "COLUMNS": "1000"},
            capture_output=True, text=True, timeout=allow_s(120), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    def diagnose(line: str) -> dict[str, dict[str, str]]:
        findings = json.loads(type_(f"{line} --json")[1])["findings"]
        return {finding["what"]: finding for finding in findings}

    def find(findings: dict[str, dict[str, str]], text: str) -> dict[str, str]:
        return next(finding for what, finding in findings.items() if text in what)

    def command_in(text: str) -> str:
        return text.partition("`")[2].partition("`")[0]

    half = find(await asyncio.to_thread(diagnose, "roost doctor"), "kernelspec half")
    assert half["level"] == "not asked", f"no service of Ray runs yet: {half}"
    doctor = command_in(half["do"])
    half = find(await asyncio.to_thread(diagnose, doctor), "kernelspec half")
    assert half["level"] == "not asked", "no agent runs yet"
    up = command_in(half["do"])
    code, said = await asyncio.to_thread(type_, up)
    assert code == 1
    assert "No module named 'zmq'" in said
    assert "install ipykernel into it" in said
    findings = await asyncio.to_thread(diagnose, doctor)
    half, failed = find(findings, "kernelspec half"), find(findings, "no agent of roost starts on")
    assert (half["level"], failed["level"]) == ("not now", "error")
    assert "install ipykernel into it" in half["what"]
    assert "remove" not in half["do"]
    assert command_in(half["do"]) == command_in(failed["do"]) == up


async def test_a_node_that_drains(notebooks: Callable[..., object], raylets: Raylets) -> None:
    """Ray drains the node: no kernel is placed there, and the running kernel lives on."""
    node = raylets.add_node(Machine(cpus=2, labels={"third": "yes"}))
    notebook = await notebooks(labels={"third": "yes"}, cpus=1)
    await notebook.run("mine = 42")
    command = [sys.executable, "-c", DRAIN, raylets.address, node.address]
    await asyncio.to_thread(subprocess.run, command, timeout=allow_s(60), check=True)
    decision = await _until_no_room(Request(labels={"third": "yes"}), 2)
    assert "draining" in decision["reason"]
    assert await notebook.value("mine") == "42"


@pytest.fixture
def own_cluster_runtime_dir(runtime_dir: Path) -> Iterator[Path]:
    """Return the runtime folder of a test with its own cluster."""
    yield runtime_dir
    disconnect()
    settle(runtime_dir)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let Ray's processes and drivers give up a missing GCS after 5 s, not a minute. Return the settings."""
    settings = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return settings


@pytest.fixture
def redis() -> Iterator[str]:
    """Start a Redis that writes nothing to disk, and yield its address."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (Debian's package of that name)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd="/tmp") as server:
        yield f"127.0.0.1:{port}"
        server.terminate()


@pytest.mark.parametrize("state", [pytest.param("kept", marks=pytest.mark.long), "lost"])
async def test_the_head(
    own_cluster_runtime_dir: Path,
    tmp_path: Path,
    impatient: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    state: str,
) -> None:
    await _lose_the_head(own_cluster_runtime_dir, tmp_path, impatient, monkeypatch, state, within_s=60)


@pytest.mark.long
@pytest.mark.parametrize("state", ["kept", "lost", "redis"])
async def test_the_head_for_rays_own_minute(
    own_cluster_runtime_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    state: str,
) -> None:
    settings = {"RAY_REDIS_ADDRESS": request.getfixturevalue("redis")} if state == "redis" else {}
    await _lose_the_head(own_cluster_runtime_dir, tmp_path, settings, monkeypatch, state, within_s=150)


@pytest.mark.long
async def test_a_head_that_restarts_at_once(
    own_cluster_runtime_dir: Path, tmp_path: Path, impatient: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head without its state is another cluster. The other raylets leave it, and their kernels wait."""
    with Raylets(
        *MACHINES, environment={**impatient, VARIABLE: f"{own_cluster_runtime_dir}/node"}
    ) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        head, node = cluster.nodes
        notebook = Notebook("roosted")
        config = {"backend": "ray", "gpus": 1, "gpu_models": ["A100"]}
        notebook.manager.kernel_spec_manager = kernelspecs(tmp_path, config=config)
        await notebook.open()
        try:
            await notebook.run("mine = 42")
            lease_id = (await service().kernel(notebook.manager.kernel_id)).lease_id
            cluster.kill_gcs()
            cluster.kill_raylet(head.address)
            await asyncio.to_thread(cluster.start_again, head.address)

            async def has_ended() -> bool:
                assert await notebook.value("mine") == "42"
                return wait_gone(node.raylet_pid, 0)

            await until(has_ended, "Ray ends the raylet of another cluster", 90, 0.5)
            await asyncio.sleep(10)  # its agent asks meanwhile which cluster is there
            assert await notebook.value("mine") == "42"
            await asyncio.to_thread(cluster.start_again, node.address)
            await _until_back()
            kernel = await service().kernel(notebook.manager.kernel_id)
            assert (kernel.state, kernel.lease_id) == ("running", lease_id)
            assert await notebook.value("mine") == "42"
        finally:
            await notebook.close()
        assert groups(cluster.address) == []


async def test_kernels_outlive_their_cluster_until_another_one_begins_on_their_node(
    own_cluster_runtime_dir: Path, tmp_path: Path, impatient: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**impatient, VARIABLE: f"{own_cluster_runtime_dir}/node"}
    with Raylets(*MACHINES, environment=environment) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        notebook = Notebook("roosted")
        config = {"backend": "ray", "gpus": 1, "gpu_models": ["A100"]}
        notebook.manager.kernel_spec_manager = kernelspecs(tmp_path, config=config)
        await notebook.open()
        try:
            await notebook.run("mine = 42")
            cluster.kill_gcs()
            for node in cluster.nodes:
                cluster.kill_raylet(node.address)

            async def is_told() -> bool:
                kernel = await service().kernel(notebook.manager.kernel_id)
                return kernel.prospect == "the Ray cluster is away; this kernel lives on"

            await until(is_told, "the kernel's prospect says that the cluster is away", 10)
            network = cluster.address.rpartition(".")[0]
            with Raylets(*MACHINES, network=network, environment=environment):
                reason = await notebook.ended(service(), 30)
            assert "another Ray cluster has begun on its node" in reason
        finally:
            await notebook.close()


async def _lose_the_head(
    home: Path,
    tmp_path: Path,
    settings: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    within_s: float,
) -> None:
    """Kill the GCS, wait until raylets and driver have ended, and start it again: the kernel and its lease stay.

    So does a start that waits for room. It gets the GPU of a kernel that ends in the outage, and not the other one's.
    Each service says that the kernels live on.
    """
    environment = {**settings, VARIABLE: f"{home}/node"}
    with Raylets(*MACHINES, keeps_state=state == "kept", environment=environment) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        head, node = cluster.nodes
        notebook, ends, waits = (Notebook("roosted") for _ in range(3))
        config = {"backend": "ray", "gpus": 1, "gpu_models": ["A100"], "launch_timeout": 900}
        for each in (notebook, ends, waits):
            each.manager.kernel_spec_manager = kernelspecs(tmp_path / str(id(each)), config=config)
        await notebook.open()
        await ends.open()
        opening = asyncio.ensure_future(waits.open())
        try:
            await notebook.run("mine = 42")

            async def is_queued() -> bool:
                return any(kernel.state == "queued" for kernel in await service().kernels())

            await until(is_queued, "the third start is queued")
            lease_id = (await service().kernel(notebook.manager.kernel_id)).lease_id
            (driver,) = daemon_pids(home, "scheduler")
            cluster.kill_gcs()
            pids = (driver, head.raylet_pid, node.raylet_pid)

            async def have_ended() -> bool:
                assert await notebook.value("mine") == "42"
                return all(wait_gone(pid, 0) for pid in pids)

            await until(have_ended, "the processes of Ray end at Ray's own deadline", within_s, 1)
            refusal = await _until_refused("its kernels live on")
            kill(*daemon_pids(home, "scheduler"))
            assert await _until_refused("its kernels live on") == refusal
            assert not opening.done()
            await notebook.interrupt()
            assert await notebook.value("mine") == "42"
            await ends.close()
            if state != "lost":
                cluster.restart_gcs()
            for one in (head, node):
                await asyncio.to_thread(cluster.start_again, one.address)
            await _until_back()
            kernel = await service().kernel(notebook.manager.kernel_id)
            assert (kernel.state, kernel.lease_id) == ("running", lease_id)

            def is_claimed() -> bool:  # the head is back before the node's kernels have their groups
                return lease_id in [name.partition(" for ")[0] for name in groups(cluster.address)]

            await until(is_claimed, "the kernel has its placement group again", 30)
            await asyncio.wait_for(opening, allow_s(60))
            assert await waits.value("6 * 7") == "42"
            assert await notebook.value("mine") == "42"
            await notebook.close()
        finally:
            opening.cancel()
            for each in (notebook, ends, waits):
                if each.manager.has_kernel:
                    await each.close()
        assert groups(cluster.address) == []


async def _until_refused(about: str) -> str:
    """Wait until the refusal of a question says something about kernels, and return this clause."""
    said = ""

    async def find_clause() -> str:
        nonlocal said
        with pytest.raises(BackendUnavailable, match="away") as caught:
            await service().explain(Request())
        said = str(caught.value)
        clause = re.search("is away, and (.*?): ", said)
        return clause[1] if clause is not None and clause[1].startswith(about) else ""

    return await until(find_clause, lambda: f"a refusal says {about!r}: {said}")


async def _until_no_room(request: Request, seconds: float) -> dict[str, Any]:
    """Wait until the service refuses the request, and return its decision."""

    async def find_refusal() -> dict[str, Any] | None:
        decision = await service().explain(request)
        return None if decision["placement"] else decision

    return await until(find_refusal, "the service refuses the request", seconds)


@pytest.mark.long
async def test_a_service_without_a_head_uses_little_processor_time(
    own_cluster_runtime_dir: Path,
    impatient: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    with Raylets(
        Machine(), environment={**impatient, VARIABLE: f"{own_cluster_runtime_dir}/node"}
    ) as cluster:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        assert len(await service().nodes()) == 1
        (driver,) = daemon_pids(own_cluster_runtime_dir, "scheduler")
        before_s = after_s = processor_s(driver)
        cluster.kill_gcs()
        gone_at = time.monotonic()

        def has_ended() -> bool:
            nonlocal after_s
            after_s = processor_s(driver, after_s)
            return wait_gone(driver, 0)

        await until(has_ended, "the driver ends at Ray's own deadline", 60, 0.5)
        record_property("processor_s", after_s - before_s)
        assert after_s - before_s < 1 + 0.2 * (time.monotonic() - gone_at)


def processor_s(pid: int, otherwise: float = 0.0) -> float:
    """Return the processor time of a process, or `otherwise` if it has ended."""
    try:
        return sum(psutil.Process(pid).cpu_times()[:2])
    except psutil.NoSuchProcess:
        return otherwise


async def _until_back() -> None:
    async def is_back() -> bool:
        with contextlib.suppress(BackendUnavailable):
            return bool((await service().explain(Request(gpus=1)))["placement"])
        return False

    await until(is_back, "the service finds the cluster that is back", 80)
