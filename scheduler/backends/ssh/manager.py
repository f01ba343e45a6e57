"""SSH hosts as a cluster: a list of machines, and an agent on each one where the user has kernels.

No process manages these machines. The agent of a host decides on each lease, by the machine's book. A host without an
agent is measured by a short session when a start needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import math
import os
import socket
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from roost.launchers.daemon.tasks import cancel_all, spawn, wait_until_set
from roost.launchers.protocol.agent_settings import AgentSettings
from roost.launchers.protocol.host_contact import HostAnswer, Question
from roost.placement import Node
from roost.placement.model.json_codec import WireError, decode, encode
from roost.placement.model.node import UNREACHABLE
from roost.scheduler.backends.agent_per_node.manager import HasRoom, StartedAgent
from roost.scheduler.backends.agent_per_node.membership import Membership
from roost.scheduler.backends.base import AgentAddress, Lease
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.errors import BackendUnavailable, ConfigError
from roost.scheduler.messages import Finding

from .contacts import Contacts
from .far_side import PROLOGUE_S
from .host_list import Host, list_hosts
from .host_memory import HostMemory, HostRecord
from .open_ssh import HostProblem
from .options import PROLOGUE
from .prologues import KernelPrologues
from .questions import ask_host
from .settings import RoostSshBackend

log = logging.getLogger(__name__)

_FIRST_S = 2.0
"""How long the service waits for the first host that answers."""
_OTHERS_S = 0.5
"""How much longer it waits for the others, of which the rest follows."""
_FIRST_FEW = 4
"""These many hosts are asked at once, and the others `_OTHERS_S` later: the answers of many come late together."""
_LOOK_S = 5.0
"""How often the nodes are looked at without an event."""
_REFRESHES = 4
"""At most this many hosts are measured again at once."""
_ASK_S = 30.0
_START_AGENT_S = 60.0
_FORGIVE_S = 30.0
"""How often callers with the same credentials have failed logins tried again. sshd bans an address after some."""
_REACH_S = 4.0
_WAITING_S = 15.0
"""How often hosts are measured again while a start waits: another user may give a GPU back."""
_BLOCKED_S = 60.0
"""How long a host whose ports are closed takes no kernels. Only an agent can show that they are open."""
_PROLOGUE_S = _ASK_S + PROLOGUE_S
_NOT_YET = "roost has not reached it yet"


@dataclass(frozen=True, slots=True, kw_only=True)
class SshNode:
    """A host as roost saw it last. Its `id` is the name by which ssh reaches it."""

    host: Host
    machine: str = ""
    """The identity of the machine: two names with the same one are one node."""
    seen: Node | None = None
    """The host as it has measured itself; None if roost never reached it."""
    seen_at: float = 0.0
    """When that was, on the monotonic clock."""
    problem: str = _NOT_YET
    """Why it cannot be used now, as a clause; empty if it can."""
    started_agent: StartedAgent | None = None
    """The agent that the last contact has found or started."""

    @property
    def id(self) -> str:
        return self.host.name

    @property
    def daemon(self) -> str:
        """The machine since its last start: an agent from before has ended."""
        return self.machine


class SshManager:
    """A `ClusterManager` for the hosts that the settings name."""

    name = "SSH"
    daemon = "agent"
    claim_name = "lease"
    other_holders = "other kernels of these machines"
    holds_claims = False

    def __init__(
        self,
        settings: RoostSshBackend,
        agent_settings: AgentSettings,
        key_pair: KeyPair,
        memory: HostMemory,
    ) -> None:
        self._settings = settings
        self._memory = memory
        self._agent_settings = agent_settings
        self._key_pair = key_pair
        # Another machine's service has other applications, whose processes cannot be seen from here.
        digest = hashlib.sha256(f"{key_pair.public} {socket.gethostname()}".encode()).hexdigest()
        self._agent_name = f"agent-ssh-{digest[:8]}"
        self._contacts = Contacts()
        self._forgave_at = -math.inf
        self._must_forgive = False
        """True if a caller has come since failed logins were forgotten. A start of that caller may wait."""
        self._prologues = KernelPrologues(self._read_prologue)
        self._nodes: dict[str, SshNode] = {}
        self._connected: Collection[str] = ()
        self._needed_at = self._listed_at = -math.inf
        self._list_problem = ""
        """Why the list of hosts could not be read again: a sentence."""
        self._asked_at: dict[str, float] = {}
        self._blocked: dict[str, tuple[str, float]] = {}
        """By host: why this machine does not reach its ports, and since when."""
        self._reading: dict[str, asyncio.Task[Any]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._refreshes = asyncio.Semaphore(_REFRESHES)
        self._changed = asyncio.Event()
        self.is_still_reading = True
        """True until the first reading of each host has ended."""
        self.membership: Membership[SshNode] = Membership(self.name, join=self._join, fetch=self._fetch)

    async def close(self) -> None:
        await cancel_all(self._tasks)
        self._memory.close()

    def note_caller(self) -> None:
        """Try a failed login again, unless that was done a moment ago: a person may have mended it."""
        self._must_forgive = True
        self._forgive()

    def _forgive(self) -> None:
        """Forget the failed logins, if someone has called since, and if that was not done a moment ago."""
        now = time.monotonic()
        if self._must_forgive and now - self._forgave_at > _FORGIVE_S:
            self._must_forgive, self._forgave_at = False, now
            self._contacts.clear()
            self._asked_at.clear()

    def refresh(self, connected: Collection[str]) -> None:
        """Measure those hosts again whose figures are old, and whose agents are not `connected`. Does not wait.

        `connected` is a view that follows later changes. The hosts are measured again and again while a start waits:
        each new figure wakes it, and it calls this again. The list of hosts is read as often.
        """
        self._connected, self._needed_at = connected, time.monotonic()
        self._refresh(self._settings.refresh_s)

    def _refresh(self, max_age_s: float) -> None:
        old = time.monotonic() - max_age_s
        if self._listed_at < old:
            self._listed_at = time.monotonic()
            spawn(self._list_again(), self._tasks, log)
        failed = time.monotonic() - min(_WAITING_S, max_age_s)
        for name, node in self._nodes.items():
            is_due = self._asked_at.get(name, 0.0) < failed if node.problem else node.seen_at < old
            if is_due and name not in self._connected and name not in self._reading:
                self._read(name, self._refreshes)

    def note_status(self, node_id: str, status: Node) -> None:
        """Note what the agent of a host reports: it is what roost knows when the agent is out of reach."""
        if node_id in self._nodes:
            self._nodes[node_id] = replace(
                self._nodes[node_id],
                seen=status,
                seen_at=time.monotonic(),
                problem="",
                started_agent=None,
            )

    def note_silence(self, node_id: str) -> None:
        """Ask a host whose agent does not answer any more: it may be down."""
        if node_id in self._nodes and node_id not in self._reading:
            self._read(node_id)

    async def wait_until_described(self) -> None:
        """Do nothing: a host that has been reached describes itself."""

    async def wait_for_change(self) -> None:
        await wait_until_set(self._changed, _LOOK_S)
        self._changed.clear()
        self._forgive()
        if time.monotonic() - self._needed_at < 2 * _WAITING_S:
            self._refresh(min(_WAITING_S, self._settings.refresh_s))

    async def read_metrics(self) -> Collection[str]:
        return self._nodes.keys()

    def build_node(self, node: SshNode, status: Node | None) -> Node:
        name, labels = node.id, dict(node.host.labels)
        if status is not None:
            return replace(status, id=name, labels=labels)
        if node.seen is None:
            return Node(
                id=name, labels=labels, is_draining=True, drains_because=f"{UNREACHABLE}: {node.problem}"
            )
        age_s = (node.seen.metrics_age_s or 0.0) + time.monotonic() - node.seen_at
        seen = replace(node.seen, id=name, labels=labels, metrics_age_s=age_s)
        if node.problem:
            return replace(seen, is_draining=True, drains_because=f"{UNREACHABLE}: {node.problem}")
        return seen

    async def environment(self, lease: Lease, address: str) -> Mapping[str, str]:
        """Run the kernel's prologue on its host, unless its result is known. Raises `LaunchError`, `HostProblem`."""
        node = self._nodes.get(lease.node_id)
        prologue = lease.request.options.get(PROLOGUE, "")
        if prologue and node is not None:
            await self._prologues.prepare(node.id, prologue, node.machine)
        return self._prologues.variables(lease.node_id, prologue)

    async def claim(
        self, lease: Lease, node: SshNode, has_room: HasRoom, *, again: bool = False
    ) -> tuple[str, ...]:
        return lease.device_ids  # the agent decides

    def can_take_on(self, node: SshNode) -> bool:
        return True

    async def release(self, lease: Lease) -> None:
        """Do nothing: the agent has given the lease back."""

    async def claims(self) -> Sequence[Lease]:
        return ()

    def unclaimed(self, leases: Sequence[Lease], node: SshNode) -> Sequence[Lease]:
        return ()

    async def start_agent(self, node_id: str) -> StartedAgent:
        node = await self._contact(node_id, begins=True)
        if node.started_agent is None:
            raise BackendUnavailable(f"no agent on {node_id}: the host has not said where it listens")
        return node.started_agent

    async def diagnose(self) -> list[Finding]:
        found: list[Finding] = []
        if self._list_problem:
            what, _, do = self._list_problem.rstrip(".").rpartition(": ")
            if what.endswith("cannot be read"):  # the last part is the system's reason, and no remedy
                what, do = f"{what} ({do})", "make that file readable, or correct the setting that names it"
            found.append({"level": "warning", "what": f"the list of hosts stays as it was: {what}", "do": do})
        by_machine: dict[str, str] = {}
        for name, node in self._nodes.items():
            first = by_machine.setdefault(node.machine or name, name)
            if first != name:
                what = f"{name} is the same machine as {first}, and counts once"
                found.append(
                    {"level": "warning", "what": what, "do": f"leave {name} out of the list of hosts"}
                )
        return found

    async def _join(self, address: str) -> str:
        hosts = await asyncio.to_thread(list_hosts, self._settings)
        self._listed_at = time.monotonic()
        known = self._memory.load()
        self._nodes = {host.name: _recall(host, known.get(host.name)) for host in hosts}
        later = itertools.chain(itertools.repeat(0.0, _FIRST_FEW), itertools.repeat(_OTHERS_S))
        readings = [
            self._read(name, after_s=after_s) for name, after_s in zip(self._nodes, later, strict=False)
        ]
        spawn(self._note_first_readings(readings), self._tasks, log)
        # A host that an earlier service has reached counts as it was then: the claim asks it afresh.
        unknown = [task for task, name in zip(readings, self._nodes, strict=True) if name not in known]
        if unknown:
            _, others = await asyncio.wait(unknown, timeout=_FIRST_S, return_when=asyncio.FIRST_COMPLETED)
            if others and len(others) < len(unknown):
                await asyncio.wait(others, timeout=_OTHERS_S)
        return ""  # the list of hosts is no address

    async def _list_again(self) -> None:
        """Read the list of hosts, whose files may have changed."""
        try:
            hosts = await asyncio.to_thread(list_hosts, self._settings)
        except ConfigError as problem:
            if self._list_problem != problem.user_message:
                self._list_problem = problem.user_message
                log.warning("the list of hosts stays as it was: %s", self._list_problem)
            return
        self._list_problem = ""
        before = self._nodes
        self._nodes = {
            host.name: replace(before.get(host.name, SshNode(host=host)), host=host) for host in hosts
        }
        for name in self._nodes.keys() - before.keys():
            self._read(name)
        if self._nodes != before:
            self.membership.expire()
            self._changed.set()

    async def _note_first_readings(self, readings: Collection[asyncio.Task[None]]) -> None:
        await asyncio.wait(readings)
        self.is_still_reading = False
        self._changed.set()

    async def _fetch(self) -> Iterable[SshNode]:
        seen: dict[str, SshNode] = {}
        for name, node in self._nodes.items():
            seen.setdefault(node.machine or name, node)
        return list(seen.values())

    def _read(
        self, name: str, turns: asyncio.Semaphore | None = None, *, after_s: float = 0.0
    ) -> asyncio.Task[None]:
        """Begin to measure a host."""

        async def read() -> None:
            try:
                await asyncio.sleep(after_s)
                async with turns or contextlib.nullcontext():
                    await self._contact(name, begins=False)
            except BackendUnavailable as problem:
                log.info("node=%s cannot be measured: %s", name, problem)
            finally:
                self._reading.pop(name, None)

        task = self._reading[name] = spawn(read(), self._tasks, log)
        return task

    async def _contact(self, name: str, *, begins: bool) -> SshNode:
        """Ask a host what it is, and start its agent if `begins`. Raises `HostProblem`."""
        node = self._nodes.get(name)
        if node is None:
            raise BackendUnavailable(f"{name} is not in the list of hosts any more")
        asked_at = self._asked_at[name] = time.monotonic()
        try:
            answer = await self._ask(node.host, begins=begins)
        except HostProblem as problem:
            self._note_problem(name, str(problem))
            raise
        agent: StartedAgent | None = None
        if answer.endpoint and (obstacle := await _find_obstacle(answer.endpoint)):
            self._blocked[name] = obstacle, asked_at
            self._note_problem(name, obstacle)
            raise HostProblem(obstacle, kind="unreachable")
        if answer.endpoint:
            self._blocked.pop(name, None)
            address = AgentAddress(endpoint=answer.endpoint, keys=self._key_pair.keys_for(answer.public))
            agent = StartedAgent(address=address, daemon=answer.machine)
        node = SshNode(
            host=node.host,
            machine=answer.machine,
            seen=answer.node,
            seen_at=asked_at,
            problem=self._find_block(name),
            started_agent=agent,
        )
        self._note(node)
        return node

    def _find_block(self, name: str) -> str:
        """Return why this machine does not reach the ports of a host, if that was so a moment ago."""
        obstacle, since = self._blocked.get(name, ("", -math.inf))
        return obstacle if time.monotonic() - since < _BLOCKED_S else ""

    async def _read_prologue(self, name: str, prologue: str) -> Mapping[str, Any]:
        return await ask_host(
            self._contacts,
            self._settings,
            name,
            kernel_prologue=prologue,
            deadline_s=_PROLOGUE_S,
        )

    async def _ask(self, host: Host, *, begins: bool) -> HostAnswer:
        settings = replace(self._agent_settings, address=host.address)
        question = Question(
            name=self._agent_name, settings=settings, clients=(self._key_pair.public,), begins=begins
        )
        found = await ask_host(
            self._contacts,
            self._settings,
            host.name,
            question=encode(question),
            deadline_s=_START_AGENT_S if begins else _ASK_S,
        )
        try:
            return decode(HostAnswer, found, ignore_unknown=True)
        except WireError as problem:
            text = f"{host.name} answered with what roost cannot read ({problem}): is something else answering there?"
            raise HostProblem(text, kind="answer") from None

    def _note_problem(self, name: str, problem: str) -> None:
        if name in self._nodes:
            self._note(replace(self._nodes[name], problem=problem, started_agent=None))

    def _note(self, node: SshNode) -> None:
        known = self._nodes.get(node.id)
        if known is not None:  # the list of hosts may have changed meanwhile
            self._nodes[node.id] = replace(node, host=known.host)
            self.membership.expire()
            self._changed.set()
            if node.seen is not None and not node.problem:
                self._memory.note(
                    node.id, HostRecord(machine=node.machine, node=node.seen, seen_at=time.time())
                )


async def _find_obstacle(endpoint: str) -> str:
    """Return why this machine does not reach an agent that runs, as a clause; empty if it does."""
    host, _, port = endpoint.rpartition("/")[2].rpartition(":")
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host.strip("[]"), int(port)), _REACH_S)
    except (OSError, asyncio.TimeoutError) as problem:
        number = getattr(problem, "errno", None)
        reason = os.strerror(number) if number else "no answer"
        return (
            f"ssh reaches it, but its kernels' ports cannot be reached from here ({host}, port {port}: {reason}): open "
            "its ports for this machine, or give it the label address=… with an IP address that this machine reaches"
        )
    writer.close()
    return ""


def _recall(host: Host, record: HostRecord | None) -> SshNode:
    """Return a host as an earlier service has seen it, or as a new one."""
    if record is None:
        return SshNode(host=host)
    age_s = max(0.0, time.time() - record.seen_at)
    seen_at = time.monotonic() - age_s
    return SshNode(host=host, machine=record.machine, seen=record.node, seen_at=seen_at, problem="")
