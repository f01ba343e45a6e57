"""The agent in a pod, for a `PodCluster`: its command, its code for a node without roost, and its address."""

from __future__ import annotations

import json
from pathlib import Path

from roost.launchers.daemon.private_files import read_json
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.messages import AgentAddress
from roost.placement.model.json_codec import WireError, decode, encode
from roost.scheduler.backends.node_archive import pack

AGENT_PORT = 8870
"""The port of an agent in a pod that has an address of its own."""


def agent_command(
    python: str,
    folder: str,
    *,
    address: str = "",
    idle_exit_s: float = 600.0,
    unit: str = "pod or container",
) -> tuple[str, ...]:
    """Return the command of a pod's first process: an agent for one kernel, with its state in `folder`.

    `python` must have roost, or pyzmq, psutil and the file of `agent_archive`. The agent makes `folder`, with mode
    0700, and writes its address there once it listens (`read_address` returns it). `address` is the IP address or host
    name where the agent and its kernel listen; empty is loopback. `$NAME` in it is a variable of the agent's own
    environment, because the node may not be known yet. `unit` is the manager's word for a pod in messages to users, as
    in `PodCluster.unit`. The agent exits when its lease is released, or after `idle_exit_s` without a lease.

    >>> command = agent_command("/usr/bin/python3", "/scratch/job7", address="$SLURMD_NODENAME", unit="job")
    >>> command[:4]
    ('/usr/bin/python3', '-m', 'roost.launchers.agent.main', '/scratch/job7')
    """
    settings = AgentSettings(
        address=address,
        idle_exit_s=idle_exit_s,
        is_remote=True,
        gpu_visibility="inherit",
        is_per_kernel=True,
        unit=unit,
    )
    return (python, "-m", "roost.launchers.agent.main", folder, json.dumps(encode(settings)))


def agent_archive() -> bytes:
    """Return the agent's code as a zip archive of about half a megabyte: the same bytes for all pods, without secrets.

    A Python with pyzmq and psutil, but without roost, runs `agent_command` if PYTHONPATH names a file with these bytes.
    The kernel does not get this entry of PYTHONPATH.
    """
    return pack(is_imported=True)[0]


def read_address(folder: str) -> AgentAddress | None:
    """Return the address that the agent of `folder` has written there; None while it does not listen yet.

    The call reads a file, so it blocks: call it in a thread if the folder is on a network file system. The file has the
    keys that the agent accepts, and only the owner may read it.
    """
    announced = read_json(Path(folder) / "ready.json")
    try:
        return decode(AgentAddress, announced, ignore_unknown=True)
    except WireError:  # it is not written yet
        return None
