"""roost's server extension, loaded into a stand-in for a Jupyter Server."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from jupyter_server.extension.manager import ExtensionPackage
from traitlets.config import Configurable

from roost.provisioners.server_extension import RoostExtension


class Server(Configurable):
    """A stand-in with those parts of a ServerApp that the extension reads."""

    def __init__(self, *, has_gateway_client: bool) -> None:
        super().__init__()
        self.log = logging.getLogger("server")
        self.gateway_config = SimpleNamespace(gateway_enabled=has_gateway_client)


def test_jupyter_server_finds_the_extension_under_the_name_roost() -> None:
    package = ExtensionPackage(name="roost", enabled=True)
    assert package.validate()
    assert [*package.extension_points] == ["roost"]


async def test_the_extension_does_nothing_behind_a_gateway_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    extension = RoostExtension(parent=Server(has_gateway_client=True))
    extension.load()
    await extension.start()
    assert [record.message for record in caplog.records] == [
        "roost: this server's kernels run behind a gateway, so the extension does nothing."
    ]
