"""Kernels through `roost gateway` that run as the people who ask, with real sudo in a world of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest
from server import JupyterServer

from kit.jupyter.gateway_process import Process, a_laptop, run_cell, run_gateway, start, until_it_serves
from kit.jupyter.sudo_world import GROUP, PEOPLE, SudoWorld, make_world, why_not
from roost.scheduler.client import relay
from roost.testing.clusters.free_ports import free_port
from roost.testing.deadlines import until

CONFIG = """
c.RoostGateway.impersonate = ["local"]
c.RoostGateway.inherited_envs = ["PYTHON*"]
c.RoostExtension.warm_up = False
c.ServerApp.port = {port}
"""
WHO = """
import os, pwd
print(pwd.getpwuid(os.getuid()).pw_name, os.getcwd(), os.environ["HOME"], *sorted(os.getgroups()))
"""
LIMITS = """
import resource
for name in ("NOFILE", "NPROC", "STACK"):
    print(name, *resource.getrlimit(getattr(resource, f"RLIMIT_{name}")))
"""
SPY = """
import os, signal, socket, subprocess, sys
from pathlib import Path
def connect(path):
    with socket.socket(socket.AF_UNIX) as each:
        each.connect(str(path))
tries = {{
    "signal": lambda: os.kill({pid}, 0),
    "environment": lambda: Path("/proc/{pid}/environ").read_bytes(),
    "memory": lambda: open("/proc/{pid}/mem", "rb"),
    "sockets": lambda: os.listdir("/run/user/{uid}"),
    "service": lambda: connect("/run/user/{uid}/roost/scheduler-local/socket"),
    "the gateway's tokens": lambda: os.listdir("{gateway}/.local/state/roost"),
    "the gateway's sockets": lambda: os.listdir("/run/user/{gateway_uid}"),
}}
for name, each in tries.items():
    try:
        each()
    except PermissionError:
        continue
    print(name, "is open")
done = subprocess.run([sys.executable, "-m", "roost", "stop", "{kernel_id}"], capture_output=True, text=True)
print(done.returncode, "{kernel_id}" in done.stdout)
"""
HOSTILE = """
import asyncio, dataclasses, sys, time
from roost.scheduler.messages import Event
service = sys.modules["__main__"].Service
honest = service.list_kernels
async def list_kernels(self, with_use=False, after=""):
    page = await honest(self, with_use, after)
    for _ in range(1_000):
        self.server.publish(Event(kind="warned", at=time.time(), detail="x" * 10_000))
    forged = [dataclasses.replace(each, id="{kernel_id}") for each in page["kernels"]]
    return {{**page, "kernels": [*page["kernels"], *forged]}}
async def read_kernel(self, kernel_id, with_use=False):
    await asyncio.sleep(1_000)
service.list_kernels, service.read_kernel = list_kernels, read_kernel
"""
ROOST = (sys.executable, "-m", "roost")


@pytest.fixture
def world() -> Iterator[SudoWorld]:
    if reason := why_not():
        pytest.skip(reason)
    with TemporaryDirectory(prefix="world-", dir="/tmp") as name:
        Path(name).chmod(0o755)
        with make_world(Path(name)) as made:
            spec = {"argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
            spec |= {"display_name": "roosted", "language": "python"}  # type: ignore[dict-item]
            roost = {"provisioner_name": "roost", "config": {"backend": "local"}}
            spec["metadata"] = {"supported_encryption": ["curve"], "kernel_provisioner": roost}  # type: ignore[assignment]
            folder = made.home("gateway") / ".local/share/jupyter/kernels/roosted"
            text = json.dumps(spec)
            made.run(
                "gateway", "sh", "-c", f"mkdir -p {folder} && cat > {folder}/kernel.json <<'X'\n{text}\nX"
            )
            words = f"{sys.executable} -I -m roost.scheduler.client.relay local"
            rule = f"gateway ALL=(%{GROUP}) NOPASSWD: {words}"
            made.run(
                "", "sh", "-c", f"echo '{rule}' | install -m 440 /dev/stdin /etc/sudoers.d/roost && visudo -c"
            )
            yield made


@asynccontextmanager
async def serve(world: SudoWorld, port: int, folder: Path) -> AsyncIterator[Process]:
    config = world.home("gateway") / ".jupyter/roost_gateway_config.py"
    text = CONFIG.format(port=port)
    world.run("gateway", "sh", "-c", f"mkdir -p {config.parent} && cat > {config} <<'X'\n{text}\nX")
    command = world.enter("gateway", *ROOST, "gateway")
    async with run_gateway(command, folder / "gateway.log") as gateway:
        yield gateway


def add_token(world: SudoWorld, person: str) -> str:
    return str(json.loads(world.run("gateway", *ROOST, "gateway", "token", "add", person, "--json"))["token"])


def list_relays() -> list[list[str]]:
    """Return the commands of all relays, and those of the sudos that have started them."""
    commands = (each.info["cmdline"] or [] for each in psutil.process_iter(["cmdline"]))
    return [words for words in commands if relay.__name__ in words]


def end_all(world: SudoWorld) -> None:
    for person in ("ada", "eve", "gateway"):
        world.run(person, *ROOST, "down", "--kernels", check=False)


async def test_two_people_have_kernels_of_their_own_accounts(world: SudoWorld, tmp_path: Path) -> None:
    port = free_port()
    people = {person: a_laptop(port, add_token(world, person)) for person in ("ada", "eve", "daemon")}
    try:
        async with serve(world, port, tmp_path) as gateway:
            await until_it_serves(gateway, port)
            kernels = {person: await start(people[person]) for person in ("ada", "eve")}
            for person, kernel_id in kernels.items():
                said = (await run_cell(people[person], kernel_id, f"x = {person!r}\n{WHO}")).split()
                assert said[:3] == [person, str(world.home(person)), str(world.home(person))]
                groups = world.run(person, "id", "-G").split()
                assert said[3:] == sorted(groups, key=int)
                limits = world.run("", "su", "-", person, "-c", f"{sys.executable} -c '{LIMITS}'")
                assert await run_cell(people[person], kernel_id, LIMITS) == limits
            await they_reach_nothing_of_each_other(world, people, kernels)
            await a_stranger_gets_nothing(people["daemon"])
            await gateway.end(signal.SIGKILL)
        async with serve(world, port, tmp_path) as gateway:
            await until_it_serves(gateway, port)
            for person, kernel_id in kernels.items():
                assert [each["id"] for each in (await people[person].api("GET", "kernels"))[1]] == [kernel_id]
                assert await run_cell(people[person], kernel_id, "print(x)") == f"{person}\n"
                assert (await people[person].api("POST", f"kernels/{kernel_id}/restart", {}))[0] == 200
                assert (await run_cell(people[person], kernel_id, WHO)).split()[0] == person
                assert (await people[person].api("DELETE", f"kernels/{kernel_id}"))[0] == 204
    finally:
        await asyncio.to_thread(end_all, world)
    await until(lambda: not list_relays(), "no relay and no sudo is left", 20)


async def they_reach_nothing_of_each_other(
    world: SudoWorld, people: dict[str, JupyterServer], kernels: dict[str, str]
) -> None:
    for spy, other in (("ada", "eve"), ("eve", "ada")):
        pid = (await run_cell(people[other], kernels[other], "print(os.getpid())")).strip()
        facts = {"gateway": world.home("gateway"), "kernel_id": kernels[other]}
        code = SPY.format(pid=pid, uid=PEOPLE[other], gateway_uid=PEOPLE["gateway"], **facts)
        assert await run_cell(people[spy], kernels[spy], code) == "1 False\n"
        assert (await people[spy].api("DELETE", f"kernels/{kernels[other]}"))[0] == 404


async def a_stranger_gets_nothing(laptop: JupyterServer) -> None:
    """`daemon` has a token, and the account of a system."""
    status, refused = await laptop.api("POST", "kernels", {"name": "roosted"})
    assert status >= 400
    assert "no account of a person" in refused["message"]


async def test_a_hostile_service_harms_its_own_person_only(world: SudoWorld, tmp_path: Path) -> None:
    """Ada's own configuration is her code in her service. It lies about Eve's kernel, floods, and never answers."""
    port = free_port()
    people = {person: a_laptop(port, add_token(world, person)) for person in ("ada", "eve")}
    try:
        async with serve(world, port, tmp_path) as gateway:
            await until_it_serves(gateway, port)
            kernels = {person: await start(laptop) for person, laptop in people.items()}
            config = world.home("ada") / ".jupyter/jupyter_roost_config.py"
            text = HOSTILE.format(kernel_id=kernels["eve"])
            world.run("ada", "sh", "-c", f"mkdir -p {config.parent} && cat > {config} <<'X'\n{text}\nX")
            (service,) = find_services(PEOPLE["ada"])
            service.kill()
            for turn in range(3):
                status, listed = await people["ada"].api("GET", "kernels")
                assert status != 200 or {each["id"] for each in listed} <= {kernels["ada"]}
                assert (await people["ada"].api("GET", f"kernels/{kernels['eve']}"))[0] == 404
                assert (await people["ada"].api("DELETE", f"kernels/{kernels['eve']}"))[0] == 404
                began = time.monotonic()
                assert [each["id"] for each in (await people["eve"].api("GET", "kernels"))[1]] == [
                    kernels["eve"]
                ]
                assert await run_cell(people["eve"], kernels["eve"], f"print({turn})") == f"{turn}\n"
                print(f"Eve had her answers after {time.monotonic() - began:.2f} s")
            await until(lambda: find_services(PEOPLE["ada"]), "the service in Ada's place runs", 30)
            assert (await people["eve"].api("POST", f"kernels/{kernels['eve']}/restart", {}))[0] == 200
            assert (await people["eve"].api("DELETE", f"kernels/{kernels['eve']}"))[0] == 204
    finally:
        for service in find_services(PEOPLE["ada"]):  # it lies to `roost down`, too
            service.kill()
        await asyncio.to_thread(end_all, world)


def find_services(uid: int) -> list[psutil.Process]:
    """Return the services of this user that run."""
    return [
        each
        for each in psutil.process_iter(["cmdline", "uids"])
        if each.info["uids"].real == uid and "roost.scheduler.service.server" in (each.info["cmdline"] or [])
    ]


@pytest.mark.long
async def test_twenty_gateways_that_are_killed_leave_no_relay(world: SudoWorld, tmp_path: Path) -> None:
    port = free_port()
    people = {person: a_laptop(port, add_token(world, person)) for person in ("ada", "eve")}
    kernels: dict[str, str] = {}
    try:
        for turn in range(20):
            async with serve(world, port, tmp_path) as gateway:
                await until_it_serves(gateway, port)
                for person, laptop in people.items():
                    if person not in kernels:
                        kernels[person] = await start(laptop)
                    code = f"turn = {turn}" if turn == 0 else f"assert turn == {turn - 1}; turn = {turn}"
                    assert await run_cell(laptop, kernels[person], f"{code}; print(turn)") == f"{turn}\n"
                await gateway.end(signal.SIGKILL)
        assert list_relays()
        await until(lambda: not list_relays(), "no relay and no sudo is left", 15)
    finally:
        await asyncio.to_thread(end_all, world)
