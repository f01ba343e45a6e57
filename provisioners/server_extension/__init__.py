"""roost's Jupyter Server extension. Everything works without it, with less comfort.

extension.py        RoostExtension: its settings, and what it turns on in one server
fast_channels.py    channels without pauses
warm_up.py          the service, the agent and warm processes, ready before anyone asks
jupyter_config/     enables the extension on install

Jupyter Server calls the two functions below: the first once all extensions are linked, before the server listens; the
second once the server's event loop runs.
"""

from __future__ import annotations

from typing import Any

from .extension import RoostExtension as RoostExtension

__all__ = ["RoostExtension"]


def _load_jupyter_server_extension(serverapp: Any) -> None:
    extension = RoostExtension(parent=serverapp)
    serverapp.web_app.settings["roost"] = extension
    extension.load()


async def _start_jupyter_server_extension(serverapp: Any) -> None:
    await serverapp.web_app.settings["roost"].start()
