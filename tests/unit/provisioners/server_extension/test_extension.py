"""roost's server extension, as Jupyter Server finds it."""

from __future__ import annotations

from jupyter_server.extension.manager import ExtensionPackage


def test_jupyter_server_finds_the_extension_under_the_name_roost() -> None:
    package = ExtensionPackage(name="roost", enabled=True)
    assert package.validate()
    assert [*package.extension_points] == ["roost"]
