"""The keys and ports of masters and agents, derived from the service's key pair: nothing has to be stored.

An agent is found by the host and the number of its container alone. A master has the id of its application instead of
a number.
"""

from __future__ import annotations

import asyncio
import contextlib

from roost.launchers.protocol.messages import AgentAddress
from roost.launchers.protocol.rpc import ClientKeys, RpcError, ServerKeys
from roost.launchers.protocol.rpc_client import RpcClient
from roost.scheduler.backends.key_pair import KeyPair
from roost.scheduler.errors import ConfigError

_CANDIDATES = 4
"""How many ports an agent tries, because other processes of its node may have taken some of them."""
_OPEN_S = 1.0
_HANDSHAKE_S = 2.0


class DerivedKeys:
    """The keys and ports that are derived from `key_pair`. `ports` is `lowest-highest`. Raises `ConfigError`."""

    def __init__(self, key_pair: KeyPair, ports: str) -> None:
        self._key_pair = key_pair
        self.label = key_pair.label
        lowest, _, highest = ports.partition("-")
        try:
            self._range = int(lowest), int(highest)
        except ValueError:
            self._range = 0, 0
        if not 0 < self._range[0] <= self._range[1] - _CANDIDATES < 65_536 - _CANDIDATES:
            raise ConfigError(
                f"c.RoostYarnBackend.agent_ports = {ports!r:.40} must be lowest-highest, such as 20000-30000."
            )

    def keys(self, name: object) -> ServerKeys:
        """Return the keys of the agent with this number, or of the master with this application id."""
        return self._key_pair.derive_server(f"yarn {name}")

    def client_keys(self, name: object) -> ClientKeys:
        """Return the keys of a connection to that agent or master."""
        return self._key_pair.keys_for(self.keys(name).public)

    def ports(self, name: object) -> tuple[int, ...]:
        """Return the candidate ports of that agent or master, which takes the first free one."""
        return self._key_pair.derive_ports(f"yarn {name}", *self._range, _CANDIDATES)

    async def find_agent(self, host: str, number: int) -> AgentAddress | None:
        """Return the address of the agent with this number on this host; None if the agent does not listen now."""
        ports = self.ports(number)
        are_open = await asyncio.gather(*(_is_open(host, port) for port in ports))
        keys = self.client_keys(number)
        for port in (port for port, is_open in zip(ports, are_open, strict=True) if is_open):
            endpoint = f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"
            client = RpcClient(endpoint, keys=keys)
            try:
                # Another process may listen there. Only this agent has the secret key for the handshake.
                await client.connect(timeout_s=_HANDSHAKE_S)
            except RpcError:
                continue
            await client.close()
            return AgentAddress(endpoint=endpoint, keys=keys)
        return None


async def _is_open(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, port), _OPEN_S)
    except (OSError, asyncio.TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
