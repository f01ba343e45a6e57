"""The addresses that a kernel may have, on this machine and on other machines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import zmq
from jupyter_client.manager import KernelManager

from roost.provisioners.kernel_connection import choose_address, hurry_clients
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import PORT_NAMES


def manager(transport: str, ip: str) -> Any:
    return SimpleNamespace(
        transport=transport, ip=ip, cache_ports=False, _record_random_port_names=lambda: None
    )


def test_ipc_is_refused_for_kernels_on_other_machines() -> None:
    with pytest.raises(ConfigError, match="transport = 'tcp'") as caught:
        choose_address(manager("ipc", "kernel-ipc"), "k", is_local=False)
    assert "\n" not in caught.value.user_message


def test_a_foreign_address_is_allowed_only_for_kernels_on_other_machines() -> None:
    with pytest.raises(ConfigError, match="does not have that address"):
        choose_address(manager("tcp", "192.0.2.1"), "k", is_local=True)
    choose_address(manager("tcp", "192.0.2.1"), "k", is_local=False)


@pytest.mark.parametrize("name", ["client", "blocking_client"])
def test_the_clients_of_a_manager_connect_again_soon(name: str) -> None:
    """Else a client may hear a forked kernel's reply before it has subscribed to the output."""
    km = KernelManager(**{port: 50_000 + number for number, port in enumerate(PORT_NAMES)})
    for _ in range(2):
        hurry_clients(km)
    client = getattr(km, name)()
    client.start_channels(hb=False)
    for channel in (client.shell_channel, client.iopub_channel):
        assert (channel.socket.reconnect_ivl, channel.socket.reconnect_ivl_max) == (5, 100)
    client.stop_channels()
    client.context.term()


def test_the_sockets_that_a_manager_opens_connect_again_soon() -> None:
    """A Jupyter Server without roost's extension, such as Kernel Gateway, gives them to its websockets."""
    km = KernelManager(**{port: 50_000 + number for number, port in enumerate(PORT_NAMES)})
    usual = dict(km.context.sockopts)
    for _ in range(2):
        hurry_clients(km)
    for connect in (km.connect_shell, km.connect_iopub):
        with connect() as socket:
            assert (socket.reconnect_ivl, socket.reconnect_ivl_max) == (5, 100)
            socket.linger = 0
    assert dict(km.context.sockopts) == usual
    km.context.term()


def test_a_context_that_a_program_gives_its_client_is_left_alone() -> None:
    km = KernelManager(**{port: 50_000 + number for number, port in enumerate(PORT_NAMES)})
    hurry_clients(km)
    with zmq.Context() as context:
        usual = context.sockopts.copy()
        given, replaced = km.client(context=context), km.blocking_client()
        replaced.context = context
        for client in (given, replaced):
            client.start_channels(hb=False)
            client.stop_channels()
            assert client.context is context
        assert context.sockopts == usual
        assert not context.closed
