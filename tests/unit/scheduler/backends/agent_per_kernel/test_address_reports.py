"""Agents report the addresses at which they listen: the reports that are accepted, and the lease of each."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import zmq

from roost.launchers.protocol.rpc import ClientKeys, RemoteError, Unauthorized
from roost.launchers.protocol.rpc_client import RpcClient
from roost.scheduler.backends.agent_per_kernel.address_reports import AddressReports
from roost.scheduler.backends.key_pair import KeyPair
from roost.testing.deadlines import allow_s

PORT = 8870


def key_pair() -> tuple[str, str]:
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


SERVICE, ONE, OTHER = KeyPair(*key_pair()), key_pair(), key_pair()


class Reports(AddressReports):
    """The service's receiver of reports, open. It records the lease of each agent that reports."""

    def __init__(self) -> None:
        self.leases: list[str] = []
        super().__init__(self.leases.append)

    async def call(self, pair: tuple[str, str], ip: str, port: int = PORT) -> None:
        """Report an address, as the agent with this key pair does."""
        keys = ClientKeys(server=SERVICE.public, public=pair[0], secret=pair[1])
        client = RpcClient(self.endpoint, keys=keys)
        await client.connect(timeout_s=60)
        try:
            await client.call("listens", {"ip": ip, "port": port}, timeout_s=60)
        finally:
            await client.close()


@pytest.fixture
async def reports() -> AsyncIterator[Reports]:
    reports = Reports()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        await reports.open(SERVICE, "127.0.0.1", taken.getsockname()[1])
    reports.expect(ONE[0], "lease-one", [PORT])
    yield reports
    await reports.close()
    assert not reports.endpoint


@pytest.mark.parametrize(("ip", "host"), [("10.1.2.3", "10.1.2.3"), ("fd00::7", "[fd00::7]")])
async def test_a_report_gives_the_address_with_the_key_of_the_agent(
    reports: Reports, ip: str, host: str
) -> None:
    await reports.call(ONE, ip)
    assert reports.leases == ["lease-one"]
    address = reports.read(ONE[0])
    assert address is not None
    assert address.endpoint == f"tcp://{host}:{PORT}"
    assert address.keys == SERVICE.keys_for(ONE[0])


async def test_a_foreign_key_is_refused(reports: Reports) -> None:
    with pytest.raises(Unauthorized):
        await reports.call(OTHER, "10.1.2.3")
    assert not reports.leases


async def test_an_agent_reports_for_its_own_lease_alone(reports: Reports) -> None:
    reports.expect(OTHER[0], "lease-other", [PORT])
    await reports.call(OTHER, "10.1.2.3")
    assert reports.leases == ["lease-other"]
    assert reports.read(ONE[0]) is None


@pytest.mark.parametrize(
    ("ip", "port"), [("example.org", PORT), ("", PORT), ("10.1.2.3:1", PORT), ("10.1.2.3", PORT + 1)]
)
async def test_only_an_ip_address_and_the_port_of_the_agent_are_accepted(
    reports: Reports, ip: str, port: int
) -> None:
    with pytest.raises(RemoteError, match="is no"):
        await reports.call(ONE, ip, port)
    assert reports.read(ONE[0]) is None
    assert not reports.leases


async def test_a_forgotten_agent_is_refused(reports: Reports) -> None:
    await reports.call(ONE, "10.1.2.3")
    reports.forget(ONE[0])
    assert reports.read(ONE[0]) is None
    with pytest.raises(Unauthorized):
        await reports.call(ONE, "10.1.2.3")


async def test_an_agent_that_is_forgotten_while_it_is_connected_is_refused(reports: Reports) -> None:
    client = RpcClient(reports.endpoint, keys=ClientKeys(server=SERVICE.public, public=ONE[0], secret=ONE[1]))
    await client.connect(timeout_s=60)
    reports.forget(ONE[0])
    try:
        with pytest.raises(RemoteError, match="expected"):
            await client.call("listens", {"ip": "10.1.2.3", "port": PORT}, timeout_s=60)
    finally:
        await client.close()


async def test_an_address_of_another_machine_leaves_the_port_closed() -> None:
    reports = Reports()
    await reports.open(SERVICE, "192.0.2.1", PORT)
    assert not reports.endpoint
    await asyncio.wait_for(reports.close(), allow_s(60))
