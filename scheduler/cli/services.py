"""`roost restart-service` and `roost down`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from roost.launchers.daemon.daemon import is_alive
from roost.launchers.daemon.private_files import state_folder
from roost.placement.model.format import format_count
from roost.scheduler.client.call import wait_for
from roost.scheduler.client.running_agents import (
    RunningAgent,
    end_kernels,
    find_agents,
    find_folders,
    read_kernels,
)
from roost.scheduler.client.running_services import (
    RunningService,
    find_services,
    list_kernels,
    stop_kernels,
)
from roost.scheduler.client.service_restart import read_options, restart_service
from roost.scheduler.errors import RoostError
from roost.scheduler.messages import format_names

from .nodes import describe_cluster
from .options import connect_scheduler, print_answer

_END_S = 10.0
"""How long a service or an agent may take to end."""


def restart(arguments: argparse.Namespace) -> int:
    """End the service, start the next one, and print both. Kernels live on.

    If the command has no options but the address, the next service keeps those of the last one.
    """
    client = connect_scheduler(arguments)
    folder = client.service_folder()
    given = client.options
    options = given if given.keys() - {"address"} else {**(read_options(folder) or {}), **given}
    done = restart_service(folder, client.backend, options)
    service = wait_for(client.service())
    listed = wait_for(client.kernels())
    kernels = sum(each.state in ("running", "unknown") for each in listed)
    document = {
        **asdict(done),
        "backend": client.backend,
        "kernels": kernels,
        "unreachable": listed.unreachable,
    }
    lives = (
        f"{format_count(kernels, 'kernel')} {'lives' if kernels == 1 else 'live'} on"
        if kernels
        else "no kernels"
    )
    if listed.unreachable:
        lives += f"; more may live on {format_names(listed.unreachable)}, where no agent answers now"
    own = [f"--backend-option {name}={value}" for name, value in client.options.items() if name != "address"]
    of_options = f" with {' '.join(own)}" if own else ""
    where = describe_cluster(service)

    def show() -> None:
        if done.ended_pid is None:
            print(f"No service of {where}{of_options} was running. One runs now (pid {done.pid}): {lives}.")
            return
        how = "did not end and was killed" if done.was_killed else "has ended"
        print(f"The service of {where}{of_options} (pid {done.ended_pid}) {how}.")
        after = f"after {done.took_s:.1f} s"
        print(f"The next one (pid {done.pid}) serves {after}, with the settings of now: {lives}.")

    return print_answer(arguments, document, show)


def end_all(arguments: argparse.Namespace) -> int:
    """End all services and agents of this user, if there are no kernels or if the command may end them, too."""
    services, agents = find_services(), find_agents()
    kernels: set[str] = set()
    if arguments.kernels:
        kernels = asyncio.run(_end_kernels(services, agents, arguments.grace))
    elif count := len(asyncio.run(_list_kernels(services, agents))):
        there_are = "There is 1 kernel" if count == 1 else f"There are {count} kernels"
        raise RoostError(f"{there_are}, and nothing was ended: `roost down --kernels` ends kernels, too.")
    for service in services:
        asyncio.run(stop_kernels(service, (), arguments.grace, and_all=True))
    for agent in set(find_agents()) & set(agents):
        with suppress(ProcessLookupError):
            os.kill(agent.pid, signal.SIGTERM)
    left = [*(each.folder for each in services), *(Path(each.folder) for each in agents)]
    until = time.monotonic() + _END_S
    while (late := [folder for folder in left if is_alive(folder)]) and time.monotonic() < until:
        time.sleep(0.05)
    if late:
        raise RoostError(f"These do not end: {', '.join(map(str, late))}. Their logs may say why.")
    stays = [str(folder) for folder in (*find_folders(), state_folder()) if folder.exists()]
    ended = {
        "kernels": sorted(kernels),
        "services": [each.pid for each in services],
        "agents": [each.pid for each in agents],
        "stays": stays,
    }

    def show() -> None:
        counts = ((len(kernels), "kernel"), (len(services), "service"), (len(agents), "agent"))
        done = [format_count(number, word) for number, word in counts if number]
        print(f"Ended: {', '.join(done)}." if done else "Nothing of roost's was running.")
        print(f"Logs and state stay in {format_names(stays)}. `roost kernelspec list` lists kernelspecs.")

    return print_answer(arguments, ended, show)


async def _list_kernels(services: Sequence[RunningService], agents: Sequence[RunningAgent]) -> set[str]:
    """Return the ids of all kernels and starts of these services and agents. Raises `RoostError`.

    A service that has just begun, or that has lost its cluster, may not know the kernels of each agent. An agent of
    this machine may have no service any more.
    """
    of_services = await asyncio.gather(*map(list_kernels, services))
    of_agents = await asyncio.gather(*map(read_kernels, agents))
    return {*chain.from_iterable((*of_services, *of_agents))}


async def _end_kernels(
    services: Sequence[RunningService], agents: Sequence[RunningAgent], grace_s: float
) -> set[str]:
    """End all kernels, by their services first, which tell the applications. Return their ids. Raises `RoostError`."""
    ended: set[str] = set()
    for service in services:
        known = await list_kernels(service)
        await stop_kernels(service, known, grace_s)
        ended.update(known)
    found = await asyncio.gather(*(end_kernels(agent, grace_s) for agent in agents), return_exceptions=True)
    for kernels in found:
        if isinstance(kernels, BaseException):
            raise kernels
        ended.update(kernels)
    for service in services:  # it may have learned of a kernel by its end
        await stop_kernels(service, await list_kernels(service), grace_s)
    return ended
