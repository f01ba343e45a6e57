"""`AddressReports`: the port where the agents of new pods report that they listen.

A cluster manager may report the address of a pod long after its agent listens. A report only saves this
time. The service connects to the reported address with the agent's key, so a false address does no harm: only
that connection fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from ipaddress import ip_address

import zmq

from roost.launchers.protocol.messages import AgentAddress
from roost.launchers.protocol.rpc import RemoteError, ServerKeys
from roost.launchers.protocol.rpc_server import CALLER, Operation, RpcServer
from roost.scheduler.backends.key_pair import KeyPair

log = logging.getLogger(__name__)


class AddressReports:
    """A port that accepts reports from the expected agents. An agent is known by its public key.

    `on_report` gets the lease id of each report. `endpoint` is empty while the port is closed.
    """

    def __init__(self, on_report: Callable[[str], object]) -> None:
        self._on_report = on_report
        self._key_pair: KeyPair | None = None
        self._server: RpcServer | None = None
        self._expected: dict[str, tuple[str, Collection[int]]] = {}
        """By public key: the lease id, and the ports where the agent may listen."""
        self._reported: dict[str, AgentAddress] = {}
        self.endpoint = ""

    async def open(self, key_pair: KeyPair, ip: str, port: int) -> None:
        """Listen at this address, on any free port if `port` is taken. On failure, log it and stay closed."""
        keys = ServerKeys(public=key_pair.public, secret=key_pair.secret, clients=frozenset())
        operations = {"listens": Operation(self._listens)}
        server = RpcServer(operations, keys=keys, accepts=self._expected.__contains__)
        try:
            self.endpoint = server.start(f"tcp://{ip}:{port}", f"tcp://{ip}:*")
        except zmq.ZMQError as problem:
            log.warning("agents cannot report their addresses to %s: %s", ip, problem)
            await server.close()
        else:
            self._key_pair, self._server = key_pair, server

    async def close(self) -> None:
        """Close the port. May be repeated."""
        server, self._server, self.endpoint = self._server, None, ""
        if server is not None:
            await server.close()

    def expect(self, agent_public: str, lease_id: str, ports: Collection[int]) -> None:
        """Accept a report of the agent with this key, if it listens on one of these ports."""
        self._expected[agent_public] = lease_id, ports

    def forget(self, agent_public: str) -> None:
        """Accept no report of this agent from now on, and drop its report."""
        self._expected.pop(agent_public, None)
        self._reported.pop(agent_public, None)

    def read(self, agent_public: str) -> AgentAddress | None:
        """Return the address that this agent has reported; None without a report."""
        return self._reported.get(agent_public)

    def _listens(self, ip: str, port: int) -> None:
        """Record that the calling agent listens at this address."""
        agent_public = CALLER.get()
        if agent_public not in self._expected:  # it has connected while it was
            raise RemoteError("not_expected", "no report of this agent is expected")
        lease_id, ports = self._expected[agent_public]
        try:
            address = ip_address(ip)
        except ValueError:
            raise RemoteError("bad_request", f"{ip!r:.60} is no IP address") from None
        if port not in ports:
            raise RemoteError("bad_request", f"{port} is not a port of this agent")
        assert self._key_pair is not None
        host = f"[{address}]" if address.version == 6 else str(address)
        keys = self._key_pair.keys_for(agent_public)
        self._reported[agent_public] = AgentAddress(endpoint=f"tcp://{host}:{port}", keys=keys)
        self._on_report(lease_id)
