"""Which addresses a kernel can have, by where it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from roost.provisioners.kernel_connection import choose_address
from roost.scheduler.errors import ConfigError


def manager(transport: str, ip: str) -> Any:
    return SimpleNamespace(transport=transport, ip=ip, _record_random_port_names=lambda: None)


def test_sockets_of_this_machine_are_refused_for_kernels_on_others() -> None:
    with pytest.raises(ConfigError, match="transport at 'tcp'") as caught:
        choose_address(manager("ipc", "kernel-ipc"), "k", is_local=False)
    assert "\n" not in caught.value.user_message


def test_an_address_of_no_network_card_here_is_for_kernels_on_others() -> None:
    with pytest.raises(ConfigError, match="does not have that address"):
        choose_address(manager("tcp", "192.0.2.1"), "k", is_local=True)
    choose_address(manager("tcp", "192.0.2.1"), "k", is_local=False)
