"""Plugins of another protocol, which a cluster has already, are left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from roost.launchers.protocol.shared_values import VERSION
from roost.scheduler.backends.dask.install import install_plugins
from roost.scheduler.backends.dask.plugin.scheduler_plugin import PROTOCOL
from roost.scheduler.backends.dask.settings import RoostDaskBackend
from roost.scheduler.errors import ConfigError


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL + 1])
async def test_plugins_of_another_protocol_are_left_alone(protocol: int) -> None:
    async def find_plugin(_: Any) -> bool:
        return True

    async def hello() -> dict[str, Any]:
        return {"protocol": protocol, "version": "9", "mark": "", "is_whole": True}

    client = SimpleNamespace(run_on_scheduler=find_plugin, scheduler=SimpleNamespace(roost_hello=hello))
    refusal = f"roost 9 uses this Dask cluster already, and its protocol is not that of roost {VERSION}"
    with pytest.raises(ConfigError, match=refusal):
        await install_plugins(client, RoostDaskBackend(), "key")
