"""`roost restart-service`."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from roost.placement.model.format import format_count
from roost.scheduler.client.call import wait_for
from roost.scheduler.client.service_restart import read_options, restart_service
from roost.scheduler.messages import format_names

from .nodes import describe_cluster
from .options import connect_scheduler, print_answer


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
