"""Unix users who race for the slices of one machine, and somebody who looks at their kernels from outside.

Run as root: `python -m kit.machine.racing_users WAY USERS ROUNDS KILLS`. WAY is where the book is: `installed`,
`shared` or `chosen` (`places.Place`), or `alone`: without a book. Each user has an agent, and starts and stops kernels
at random. KILLS agents are killed at random moments. Prints the result as JSON. `race` runs all this in a mount
namespace with a /run of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import roost
from roost.launchers.daemon.process import start_time
from roost.testing.deadlines import allow_s

FIRST_UID = 3001
CPUS, MEMORY_BYTES, GPUS = 4, 1000, 4
KIT = Path(__file__).parents[2]
_MARK = "ROOST_RACE"
"""The variable that shows the kernel's race and its amounts: share of each device, CPUs, bytes."""
_NAMESPACE = """
mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/lock && chmod 1777 /run/lock && exec "$@"
"""
_READY_S = 120.0
_MOST_S = 3600.0


def race(way: str, *, users: int, rounds: int, kills: int) -> dict[str, Any]:
    """Run a race in a mount namespace, and return its result. Skip the test where there can be none."""
    skip_without_namespaces()
    program = [sys.executable, "-m", "kit.machine.racing_users", way, str(users), str(rounds), str(kills)]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", _NAMESPACE, "sh", *program],
        env={**os.environ, "PYTHONPATH": str(KIT)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=_MOST_S,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def skip_without_namespaces() -> None:
    """Skip the test if this process cannot make a mount namespace."""
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/run"]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, timeout=60).returncode:
        pytest.skip("no mount namespace can be made here")


# One user


async def act(rounds: int, seed: int, has_book: bool) -> Counter[str]:
    """Start and stop kernels as the user of this process. Return how many starts were granted and refused."""
    from kit.machine.tiny_kernel import TINY_ARGV
    from roost.launchers.agent.find_or_start import find_or_start_agent
    from roost.launchers.daemon.daemon import DaemonError
    from roost.launchers.protocol.agent_client import AgentClient
    from roost.launchers.protocol.agent_settings import AgentSettings, Enforcement
    from roost.launchers.protocol.messages import Connection, Launch, Lease, Owner, Reserve
    from roost.launchers.protocol.rpc import RemoteError, RpcError
    from roost.placement.model import Request

    amounts: dict[str, Any] = {"cpus": CPUS, "memory_bytes": MEMORY_BYTES, "gpus": GPUS}
    settings = AgentSettings(**amounts, divides_machine=has_book, enforcement=Enforcement(enforce="never"))
    dice, counts = random.Random(seed), Counter[str]()
    race_name = Path(os.environ["ROOST_RUNTIME_DIR"]).parents[1].name
    client: AgentClient | None = None

    def amounts_of(request: Request) -> str:
        return f"{request.gpu_share}:{request.cpus}:{request.memory_bytes}"

    async def connect() -> AgentClient:
        nonlocal client
        if client is None:
            client = AgentClient(*await find_or_start_agent(settings))
            await client.connect()
        return client

    async def one(number: int) -> None:
        nonlocal client
        share = dice.choice([0.0, 0.25, 0.5, 0.5, 1.0, 2.0])
        request = Request(gpus=share, cpus=dice.choice([0, 1, 2]), memory_bytes=dice.choice([0, 100, 500]))
        name = f"{os.getuid()}-{number}"
        lease = Lease(id=name, kernel_id=name, owner=Owner(user=str(os.getuid())), request=request)
        launch = Launch(
            launch_id="1", lease_id=name, kernel_id=name, argv=TINY_ARGV, cwd="/", connection=Connection(key="k"),
            env={"PATH": os.environ["PATH"], _MARK: f"{race_name}:{amounts_of(request)}"},
        )  # fmt: skip
        for _ in range(100):  # an agent that is killed is started again
            try:
                agent = await connect()
                try:
                    await agent.reserve(Reserve(lease=lease, linger_s=0.5, launch=launch))
                    await agent.launch(launch)
                    counts["granted"] += 1
                    await asyncio.sleep(dice.choice([0.0, 0.02, 0.1]))
                except RemoteError as refusal:
                    counts[refusal.kind] += 1
                await agent.release(name)
                return
            except (RpcError, DaemonError, asyncio.TimeoutError, OSError):
                counts["lost"] += 1
                if client is not None:
                    await client.close()
                client = None
                await asyncio.sleep(0.02)

    await connect()
    print("ready", flush=True)
    sys.stdin.read()
    left = iter(range(rounds))

    async def work() -> None:
        for number in left:
            await one(number)

    await asyncio.gather(*(work() for _ in range(2)))
    agent = await connect()
    counts["left"] = len((await agent.holdings()).leases)
    with suppress(RpcError):
        await agent.leave()
    await agent.close()
    return counts


# The look from outside


def find_kernels(race_name: str) -> Iterator[tuple[int, str, str]]:
    """Yield pid, devices and amounts of each kernel of a race."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            environ = Path(f"/proc/{name}/environ").read_bytes().decode(errors="replace")
            values = dict(pair.partition("=")[::2] for pair in environ.split("\0"))
            of_race, _, amounts = values.get(_MARK, "").partition(":")
            if of_race == race_name and os.getsid(int(name)) == int(name):
                yield int(name), values.get("CUDA_VISIBLE_DEVICES", ""), amounts


def look(race_name: str) -> tuple[int, str]:
    """Return the number of live kernels, and the slices that are held more than once; empty if there are none."""
    found = [(pid, *held, start_time(pid)) for pid, *held in find_kernels(race_name)]
    # A kernel that has ended meanwhile may have made room for another one, which was seen later.
    found = [each for each in found if each[3] and start_time(each[0]) == each[3]]
    sums: Counter[str] = Counter()
    for _, devices, mark, _ in found:
        share, cpus, memory_bytes = map(Fraction, mark.split(":"))
        sums["cpus"] += cpus / CPUS
        sums["memory"] += memory_bytes / MEMORY_BYTES
        for device in devices.split(",") if share else ():
            sums[f"GPU {device}"] += share
    return len(found), ", ".join(f"{name}: {float(total):g}" for name, total in sums.items() if total > 1)


# All together


def run(way: str, users: int, rounds: int, kills: int) -> dict[str, Any]:
    home = Path(tempfile.mkdtemp(prefix="roost-race-", dir="/tmp"))
    home.chmod(0o755)
    open_to_all(Path(sys.base_prefix), Path(sys.prefix), Path(roost.__path__[0]), KIT)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ["PYTHONPATH"]}
    if way == "installed":
        Path("/run/roost").mkdir()
        Path("/run/roost").chmod(0o1777)
        book = Path("/run/roost")
    elif way == "shared":
        book = Path("/run/lock")
    else:
        book = home / "book"
        book.mkdir()
        book.chmod(0o1777)
        environment["ROOST_MACHINE_DIR"] = str(book)
    dice = random.Random(rounds)
    racers = [_start_user(number, home, rounds, environment, way != "alone") for number in range(users)]
    looks, most, wrong, killed = 0, 0, Counter[str](), 0
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        began = time.monotonic()
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.close()
            racer.stdin = None
        next_kill = began
        while any(racer.poll() is None for racer in racers):
            count, excess = look(home.name)
            looks, most = looks + 1, max(most, count)
            if excess:
                wrong[excess] += 1
            if killed < kills and time.monotonic() > next_kill:
                killed += _kill_agent(home, dice)
                next_kill = time.monotonic() + dice.uniform(0.05, 0.6)
            time.sleep(0.002)
        took_s = time.monotonic() - began
        results = [json.loads(racer.communicate()[0] or "{}") for racer in racers]
        # Leases of killed agents expire, and agents that have left end.
        until = time.monotonic() + allow_s(30)
        while (left := [path.name for path in book.glob("*roost-*")]) and time.monotonic() < until:
            time.sleep(0.1)
    finally:
        for racer in racers:
            racer.kill()
        for pid in (*(pid for pid, *_ in find_kernels(home.name)), *_find_agents(home)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(home, ignore_errors=True)
    return {
        "users": results, "looks": looks, "most_kernels": most, "held_twice": dict(wrong), "killed": killed,
        "took_s": round(took_s, 1), "left": left,
    }  # fmt: skip


def open_to_all(*folders: Path) -> None:
    """In this mount namespace, let all users enter these folders, also those in a home folder like /root."""
    for folder in folders:
        closed = [parent for parent in folder.parents if not parent.stat().st_mode & stat.S_IXOTH]
        if not closed:
            continue
        aside = tempfile.mkdtemp(prefix="roost-race-", dir="/run")
        for command in (
            ["mount", "--bind", folder, aside],
            ["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", closed[-1]],
            ["mkdir", "-p", folder],
            ["mount", "--move", aside, folder],
        ):
            subprocess.run(command, check=True)
        os.rmdir(aside)


def _start_user(
    number: int, home: Path, rounds: int, environment: dict[str, str], has_book: bool
) -> subprocess.Popen[str]:
    uid, own = FIRST_UID + number, home / str(FIRST_UID + number)
    own.mkdir(mode=0o700)
    os.chown(own, uid, uid)
    return subprocess.Popen(
        [sys.executable, "-m", "kit.machine.racing_users", str(rounds), str(number), str(int(has_book))],
        user=uid, group=uid, extra_groups=[], cwd="/", text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**environment, "HOME": str(own), "ROOST_RUNTIME_DIR": str(own / "run")},
    )  # fmt: skip


def _kill_agent(home: Path, dice: random.Random) -> int:
    """Kill an agent. Return how many were killed."""
    if pids := _find_agents(home):
        with suppress(ProcessLookupError):
            os.kill(dice.choice(pids), signal.SIGKILL)
            return 1
    return 0


def _find_agents(home: Path) -> list[int]:
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if b"roost.launchers.agent.main" in words and any(os.fsencode(home) in word for word in words):
                found.append(int(name))
    return found


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(json.dumps(asyncio.run(act(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "1"))))
    else:
        print(json.dumps(run(sys.argv[1], *map(int, sys.argv[2:]))))
