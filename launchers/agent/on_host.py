"""What a host says about itself in a short session of a service, which has only a login there.

The service sends roost's archive, and calls `answer` in a Python of the host. No agent stays on a host where the user
has no lease, unless the service asks for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from roost.launchers.daemon.daemon import DaemonError
from roost.launchers.daemon.private_files import FolderError, runtime_dir
from roost.launchers.machine_book.rules import BadRules
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.host_contact import HostAnswer, HostPython, Question
from roost.placement.model import Node
from roost.placement.model.json_codec import decode, encode

from . import interpreter_probe
from .find_or_start import find_for_clients
from .launch.launch_changes import build_node_environment, find_folder
from .leases.ledger import LeaseLedger
from .machine.node_metrics import NodeMetrics


def answer(question: Mapping[str, Any], connection: str) -> dict[str, Any]:
    """Answer a `Question`, which is given as JSON values. Return a `HostAnswer`, or {"problem": a clause}.

    `connection` is sshd's SSH_CONNECTION. Its third word is the address that the service has reached.
    """
    try:
        asked = decode(Question, dict(question), ignore_unknown=True)
        return dict(encode(_answer(asked, connection)))
    except (DaemonError, FolderError, BadRules, OSError) as problem:
        return {"problem": str(problem)}


def probe_python(question: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
    """Answer a `HostPython`, which is given as JSON values, with {"result": a `ProbeResult`} or {"failed": a clause}.

    `variables` are those of the kernelspec's prologue.
    """
    asked = decode(HostPython, dict(question), ignore_unknown=True)
    if asked.cwd:
        _, problem = find_folder(asked.cwd)
        if problem:
            return {"failed": problem}
    env = {**build_node_environment(), **asked.env, **variables}
    return {"result": encode(interpreter_probe.probe(asked.argv, env))}


def _answer(asked: Question, connection: str) -> HostAnswer:
    settings = asked.settings
    if not settings.address:
        words = connection.split()
        settings = replace(settings, address=words[2] if len(words) == 4 else "127.0.0.1")
    folder = runtime_dir() / asked.name
    machine = name_machine()
    if not asked.begins and not _has_leases(folder):
        return HostAnswer(machine=machine, node=_measure(settings, folder))
    endpoint, public, node = asyncio.run(find_for_clients(settings, asked.clients, name=asked.name))
    return HostAnswer(machine=machine, node=node, endpoint=endpoint, public=public)


def name_machine(boot_id: Path = Path("/proc/sys/kernel/random/boot_id")) -> str:
    """Return an identity of this machine since its last start: two names with the same one lead to one machine.

    The boot's id alone would be the same in all containers of a machine, and copies of one image may share the name.
    """
    with contextlib.suppress(OSError):
        return f"{socket.gethostname()} {boot_id.read_text().strip()}"
    return socket.gethostname()


def _has_leases(folder: Path) -> bool:
    try:
        return any(name.endswith(".json") for name in os.listdir(folder / "leases"))
    except OSError:
        return False


def _measure(settings: AgentSettings, folder: Path) -> Node:
    """Return this machine as an agent without leases would. Raises `BadRules`."""
    metrics = NodeMetrics(settings)
    try:
        with TemporaryDirectory(prefix="roost-") as empty:
            ledger = LeaseLedger(
                Path(empty),
                cpus=metrics.cpus,
                memory_bytes=metrics.memory_bytes,
                devices=metrics.devices.read(),
            )
            return metrics.status(ledger, metrics.open_book(str(folder)).look())
    finally:
        metrics.devices.close()
