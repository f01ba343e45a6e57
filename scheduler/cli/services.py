"""`roost restart-service` and `roost down`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from roost.launchers.daemon.daemon import is_alive, read_announcement
from roost.launchers.daemon.private_files import runtime_dir, state_folder
from roost.placement.model.format import format_count
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.client.call import wait_for
from roost.scheduler.client.client import connect
from roost.scheduler.client.running_services import RunningService, find_services, read_service, stop_kernels
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
    if _list_agents() and not any(each.backend == DEFAULT_BACKEND for each in find_services()):
        wait_for(connect().kernels())  # an agent may have kernels that no service knows now
    services = find_services()
    kernels = {service: _list_kernels(service) for service in services}
    count = sum(map(len, kernels.values()))
    if count and not arguments.kernels:
        there_are = "There is 1 kernel" if count == 1 else f"There are {count} kernels"
        raise RoostError(f"{there_are}, and nothing was ended: `roost down --kernels` ends kernels, too.")
    for service, ids in kernels.items():
        asyncio.run(stop_kernels(service, ids, arguments.grace, and_all=True))
    agents = _list_agents()
    for pid in agents.values():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    left = [*(each.folder for each in services), *agents]
    until = time.monotonic() + _END_S
    while (late := [folder for folder in left if is_alive(folder)]) and time.monotonic() < until:
        time.sleep(0.05)
    if late:
        raise RoostError(f"These do not end: {', '.join(map(str, late))}. Their logs may say why.")
    stays = [str(runtime_dir()), str(state_folder())]
    ended = {
        "kernels": [kernel_id for ids in kernels.values() for kernel_id in ids],
        "services": [each.pid for each in services],
        "agents": [*agents.values()],
        "stays": stays,
    }

    def show() -> None:
        counts = ((count, "kernel"), (len(services), "service"), (len(agents), "agent"))
        done = [format_count(number, word) for number, word in counts if number]
        print(f"Ended: {', '.join(done)}." if done else "Nothing of roost's was running.")
        print(f"Logs and state stay in {stays[0]} and {stays[1]}. `roost kernelspec list` lists kernelspecs.")

    return print_answer(arguments, ended, show)


def _list_kernels(service: RunningService) -> list[str]:
    """Return the ids of a service's kernels and starts. Raises `RoostError`."""
    found = asyncio.run(read_service(service)).kernels
    return [str(each["id"]) for each in found if each.get("state") != "exited"]


def _list_agents() -> dict[Path, int]:
    """Return the agents of this user on this machine: the pid by the folder."""
    announced = {folder: read_announcement(folder) for folder in runtime_dir().glob("agent*")}
    return {folder: int(facts["pid"]) for folder, facts in announced.items() if facts is not None}
