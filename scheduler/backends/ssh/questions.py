"""Asks a host: sends the program of `far_side` with its arguments, and with roost's archive if the host lacks that."""

from __future__ import annotations

from typing import Any

from roost.scheduler.backends.node_archive import pack

from .contacts import Contacts
from .far_side import write_program
from .settings import RoostSshBackend


async def ask_host(
    contacts: Contacts,
    settings: RoostSshBackend,
    host: str,
    *,
    deadline_s: float,
    **task: Any,
) -> dict[str, Any]:
    """Return a host's answer to a task, which `far_side.write_program` describes. Raises `HostProblem`."""
    archive, digest = pack()
    return await contacts.run(
        host,
        write_program(),
        {"digest": digest, "prologue": "\n".join(settings.prologue), **task},
        archive=lambda: archive,
        python=settings.python,
        ssh=settings.command(),
        deadline_s=deadline_s,
    )
