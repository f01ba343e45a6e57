"""The addresses that a kernel may have, on this machine and on other machines."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from roost.provisioners.kernel_connection import choose_address
from roost.scheduler.errors import ConfigError


def manager(transport: str, ip: str) -> Any:
    return SimpleNamespace(transport=transport, ip=ip, _record_random_port_names=lambda: None)


def test_ipc_is_refused_for_kernels_on_other_machines() -> None:
    with pytest.raises(ConfigError, match="transport = 'tcp'") as caught:
        choose_address(manager("ipc", "kernel-ipc"), "k", is_local=False)
    assert "\n" not in caught.value.user_message


def test_a_foreign_address_is_allowed_only_for_kernels_on_other_machines() -> None:
    with pytest.raises(ConfigError, match="does not have that address"):
        choose_address(manager("tcp", "192.0.2.1"), "k", is_local=True)
    choose_address(manager("tcp", "192.0.2.1"), "k", is_local=False)
