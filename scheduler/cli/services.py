"""`roost restart-service`; and for `roost doctor`: several services of this user for one cluster."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from roost.launchers.daemon.daemon import read_announcement
from roost.placement.model.format import format_count
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.client import cluster_record
from roost.scheduler.client.advice import write_command
from roost.scheduler.client.call import wait_for
from roost.scheduler.client.client import Client
from roost.scheduler.client.service_restart import Restart, restart_service
from roost.scheduler.messages import Finding, format_names

from .nodes import describe_cluster
from .options import connect_scheduler, print_answer


def restart(arguments: argparse.Namespace) -> int:
    """End the service, start the next one, and print both. Kernels live on."""
    client = connect_scheduler(arguments)
    done = restart_service(
        client.service_folder(),
        client.backend,
        client.options,
        is_here=arguments.here,
        count_kernels=lambda: len(wait_for(client.kernels())),
    )
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
    before = describe_cluster({**service, "address": done.address_before or service["address"]})

    def show() -> None:
        if done.ended_pid is None:
            print(f"No service of {where}{of_options} was running. One runs now (pid {done.pid}): {lives}.")
            return
        how = "did not end and was killed" if done.was_killed else "has ended"
        print(f"The service of {before}{of_options} (pid {done.ended_pid}) {how}.")
        after = f"after {done.took_s:.1f} s"
        now = "" if before == where else f" {where}"
        print(f"The next one (pid {done.pid}) serves{now} {after}, with the settings of now: {lives}.")
        if done.path_now or done.path_before:
            print(_describe_move(done))
        if done.kept:
            print(f"It has kept its environment. In this shell, --here changes {', '.join(done.kept)}.")

    return print_answer(arguments, document, show)


def _describe_move(done: Restart) -> str:
    """Return a sentence about the folders of settings that the next service does not share with the last one."""
    new, old = ", ".join(done.path_now), ", ".join(done.path_before)
    if new and old:
        return f"It reads its settings from {new}, and the last one read them from {old}."
    return (
        f"It also reads settings from {new}."
        if new
        else f"It does not read the settings in {old}, as the last one did."
    )


def find_twins(client: Client) -> list[Finding]:
    """Return a warning for each other service of this user that serves the cluster of the client's service."""
    found: list[Finding] = []
    folder = client.service_folder()
    for twin, record in cluster_record.find_twins(folder).items():
        pid = (read_announcement(twin) or {}).get("pid", "unknown")
        what = (
            f"two services of yours serve this cluster, and each knows its own kernels only: that of {folder.name}, "
            f"which has answered, and that of {twin.name} (pid {pid})"
        )
        kernels, restart = (
            _write_command(command, client.backend, record.options)
            for command in ("kernels", "restart-service")
        )
        if record.has_options(client.options):
            do = f"stop the other one's kernels (`{kernels}` lists them); then `{restart}` joins both"
        else:
            do = f"give both the same options: the other one's kernels are listed by `{kernels}`"
        found.append({"level": "warning", "what": what, "do": do})
    return found


def _write_command(command: str, backend: str, options: Mapping[str, Any]) -> str:
    """Return the command line for the service with these options, as a user types it in this shell."""
    line = write_command(command, backend, options)
    variable = get_spec(backend).address_variable
    return f"env -u {variable} {line}" if os.environ.get(variable) and "address" not in options else line
