"""The container as the engine shows it: its lease, its agent's address, and why it has ended. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from roost.launchers.daemon.process import is_running
from roost.launchers.protocol.messages import AgentAddress, Lease
from roost.scheduler.backends.agent_per_kernel import Pod, load_lease
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.backends.node_archive import advise_python

from .engine import JsonObject
from .names import CLAIM_NAME, CREATOR_LABEL, KEY_LABEL, LEASE_LABEL, SERVICE_LABEL

STOPPED = "somebody stopped or removed its container"
STOPPED_OR_KILLED = "its container was stopped or killed, for example because the engine was restarted"
OUT_OF_MEMORY = "its container ran out of memory"
ABANDONED = "the service that created its container ended meanwhile"
STOPPING = "stopping"
"""The state of a container that somebody stops, and `stopped` right after that: in Podman's words."""
ENDED = ("exited", "dead", "stopped")
"""The states of a container that has run and has ended."""
STARTS_S = 60.0
"""How long a container may be created, but not started: more than the deadlines of the two calls in between.

The service that created an older one has ended.
"""
_KILLED, _TERMINATED = 128 + 9, 128 + 15
_MISSING = re.compile(r"No module named '?[\w.]+'?")
"""In a container's output. Podman cuts the lines of an unbuffered traceback into pieces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Why a container has ended, as a clause, and whether a retry is useless."""

    reason: str
    is_final: bool = False


def read_lease(labels: Mapping[str, str]) -> Lease | None:
    """Return the lease in the labels of a container or volume; None if they have none."""
    try:
        return load_lease(labels[LEASE_LABEL])
    except (KeyError, ValueError):
        return None


def is_of(labels: Mapping[str, str], key_pair: KeyPair) -> bool:
    """True if this service has created the container."""
    return labels.get(SERVICE_LABEL) == key_pair.label


def has_lost_creator(labels: Mapping[str, str]) -> bool:
    """True if the process that creates a container of this service has ended. It runs on this machine."""
    pid, _, started_at = labels.get(CREATOR_LABEL, "").partition(" ")
    try:
        return not is_running(int(pid), float(started_at))
    except ValueError:
        return False


def is_claim(listed: JsonObject) -> bool:
    """True for a listed container whose claim is under way: it has the lock."""
    return f"/{CLAIM_NAME}" in (listed.get("Names") or ())


def holds_room(listed: JsonObject, now: float) -> bool:
    """True if a listed container has the resources of its lease. `now` is in seconds since the epoch."""
    if is_claim(listed):
        return False
    return has_started(listed) or is_starting(listed, now)


def has_started(listed: JsonObject) -> bool:
    """True if a listed container runs."""
    return listed["State"] in ("running", "paused", "restarting", STOPPING)


def is_starting(listed: JsonObject, now: float) -> bool:
    """True if a listed container was created lately and is not started yet."""
    return bool(listed["State"] == "created" and now - listed["Created"] < STARTS_S)


def has_ended(listed: JsonObject) -> bool:
    """True if a listed container has run and has ended."""
    return listed["State"] in ENDED


def build_pod(lease: Lease, labels: Mapping[str, str], ip: str, key_pair: KeyPair, port: int) -> Pod:
    """Return a container that runs, with the address of its agent; `ip` is empty if it has no network."""
    keys = key_pair.keys_for(labels[KEY_LABEL])
    host = f"[{ip}]" if ":" in ip else ip
    address = AgentAddress(endpoint=f"tcp://{host}:{port}", keys=keys) if ip else None
    return Pod(lease=replace(lease, state="held", reason=""), address=address)


def build_lost(lease: Lease, end: End) -> Pod:
    """Return a container that has ended."""
    return Pod(lease=replace(lease, state="lost", reason=end.reason, is_final=end.is_final))


def find_ip(container: JsonObject) -> str:
    """Return the IP address of a listed or inspected container; empty if it has none."""
    networks = (container.get("NetworkSettings") or {}).get("Networks") or {}
    for network in networks.values():
        if ip := network.get("IPAddress") or network.get("GlobalIPv6Address"):
            return str(ip)
    return ""


def describe_end(state: JsonObject, printed: str) -> End:
    """Return why a container has ended, from the `State` of the inspected container and the end of its output."""
    code = state.get("ExitCode")
    if state.get("OOMKilled") and code == _KILLED:
        return End(reason=OUT_OF_MEMORY)
    if error := state.get("Error"):
        return End(reason=f"its container cannot start: {shorten(error)}", is_final=True)
    if code in (0, _KILLED, _TERMINATED):  # the agent heeds SIGTERM
        return End(reason=STOPPED_OR_KILLED)
    if missing := _MISSING.search(printed):
        problem = f"the Python of its image cannot run roost's agent ({missing[0]})"
        return End(reason=f"{problem}: {advise_python(missing[0])}", is_final=True)
    return End(reason=f"its agent ended with exit code {code}")


def shorten(message: str) -> str:
    """Return the end of an error chain, where the cause is, without a full stop."""
    cause = re.sub(
        r".*(?:OCI runtime create failed|failed to create shim task): ", "", " ".join(message.split())
    )
    return cause.rstrip(". ")[-200:]
