"""The settings of the extension, and its parts in one Jupyter Server."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Coroutine
from typing import Any

from traitlets import Bool, Enum, Float, Unicode, default
from traitlets.config import LoggingConfigurable

from roost.placement.model.format import format_count
from roost.provisioners.jupyter_internals import change_class
from roost.provisioners.provisioner import RoostProvisioner
from roost.scheduler.backends.registry import get_spec

from .server_state import ServerState, choose_server_name
from .warm_up import start_warm_up

_BLOCKS = "Starts block until their kernel is there"
_ADOPT_WITHIN_S = 5.0
"""A server's start waits at most this long for the adoption of kernels."""


class RoostExtension(LoggingConfigurable):
    """The extension in one Jupyter Server. Its settings are `c.RoostExtension.…` in the server's configuration.

    `off` has a sentence for each part that is turned off in this server.
    """

    warm_up = Bool(
        True,
        config=True,
        help="Bring up the service, the agent and warm processes for roost's kernels when the server starts.",
    )
    pending_starts = Bool(
        True,
        config=True,
        help="Let notebooks work while their kernels wait, instead of blocking their start.",
    )
    queue_timeout_s = Float(
        3600.0, min=0.0, config=True, help="Seconds that a start may wait in the queue for its resources."
    )

    server_name = Unicode(
        config=True,
        help="The name of this server. The next server of this name adopts its kernels. Default: JupyterHub's service "
        "prefix, or a digest of base URL, root folder and port.",
    )
    on_server_stop = Enum(
        ("keep", "stop", ""),
        "",
        config=True,
        help="The end of the server: the next server adopts roost's kernels (keep), or they end (stop)."
        " Default: keep on clusters, stop on this machine (local).",
    )

    waits_for_name = False
    """True if this server waits for the end of another server of its name."""

    def __init__(self, *, parent: Any) -> None:
        super().__init__(parent=parent)
        self.serverapp = parent
        self.off: list[str] = []
        self.state = ServerState("")

    @default("server_name")
    def _default_server_name(self) -> str:
        return choose_server_name(self.serverapp)

    def link(self) -> None:
        """Keep the server's sessions in a file, unless its configuration says where they are."""
        behind = self.serverapp.config.GatewayClient.get("url") or os.environ.get("JUPYTER_GATEWAY_URL", "")
        name = f"{self.server_name} {behind}" if behind else self.server_name  # kernels are of one place
        self.state = ServerState(name, waits=self.waits_for_name)
        sessions = self.serverapp.config.SessionManager
        if self.state.has_lock and "database_filepath" not in sessions:
            sessions.database_filepath = str(self.state.sessions)

    def keeps(self, backend: str) -> bool:
        """True if the kernels on a backend outlive this server."""
        if not self.state.has_lock or self.on_server_stop == "stop":
            return False
        return self.on_server_stop == "keep" or not get_spec(backend).runs_on_this_machine

    def say_what_is_kept(self, kept: list[RoostProvisioner]) -> None:
        """Log how many kernels go on without the server, and how to end them.

        Then give up the server's name.
        """
        name = self.state.name
        commands = Counter(each.service.advice.write("stop", "--server", name) for each in kept)
        for command, count in sorted(commands.items()):
            kernels = format_count(count, "kernel")
            self.log.info("roost: %s kept for the next server of this name; to end: %s", kernels, command)
        self.state.close()

    def load(self) -> None:
        """Add roost's parts to the server, before the server listens. All extensions are linked by now."""
        if self._has_gateway_client():
            self._remember_kernels()
            return
        from .server_end import ServerEnd  # `roost doctor` loads this module without Jupyter Server

        ServerEnd(self.serverapp).add()
        self._add_pending_starts()
        self._add_pages()
        if self.state.problem:
            what = "Sessions are kept in memory, and the next server adopts no kernels"
            self.off.append(f"{what}: {self.state.problem}.")
        if self.off:
            self.log.info("roost: %s", " ".join(self.off))

    async def start(self) -> None:
        """Begin the work that needs the server's event loop. The server listens by now."""
        if self._has_gateway_client():
            return
        if self.warm_up:
            start_warm_up(self.serverapp.kernel_manager, self.log)

    def _add_pending_starts(self) -> None:
        """Let starts wait without blocking, or add to `off` the reason why they cannot."""
        from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection
        from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager

        from .connection import RoostConnection
        from .pending_starts import add_pending_starts

        server = self.serverapp
        connections, kernels = server.kernel_websocket_connection_class, server.kernel_manager
        obstacle = ""
        if not isinstance(kernels, AsyncMappingKernelManager):
            obstacle = f"{type(kernels).__module__}.{type(kernels).__name__} manages the kernels"
        elif getattr(kernels, "use_pending_kernels", False):
            obstacle = "use_pending_kernels is set"
        if obstacle:
            self.off.append(f"{_BLOCKS}, and the next server adopts no kernels, because {obstacle}.")
            return
        if not self.pending_starts:
            obstacle = "c.RoostExtension.pending_starts is False"
        elif connections is not ZMQChannelsWebsocketConnection:
            obstacle = f"{connections.__module__}.{connections.__name__} serves the websockets"
        change_class(kernels, add_pending_starts(type(kernels)))
        kernels.begin(self, may_wait=not obstacle)
        if obstacle:
            self.off.append(f"{_BLOCKS}, and clients do not get missed output, because {obstacle}.")
        else:
            server.kernel_websocket_connection_class = RoostConnection
            server.web_app.settings["kernel_websocket_connection_class"] = RoostConnection
        if self.state.has_lock:
            self._adopt(kernels)

    def _adopt(self, kernels: Any) -> None:
        """List the kernels of the earlier server of this name, before the first request comes."""
        from .adoption import FoundKernel, KernelFinder

        self.log.info("roost: this server's name is %s", self.state.name)
        finder = KernelFinder(kernels.kernel_spec_manager, kernels.config, self.state, self.log, kernels)

        async def adopt() -> None:
            began = time.monotonic()
            found = await finder.find()
            await kernels.adoption.adopt(found, max(0.1, _ADOPT_WITHIN_S - (time.monotonic() - began)))
            self._adopting = asyncio.create_task(finder.find_late(adopt_late))

        async def adopt_late(found: list[FoundKernel]) -> None:
            new = [kernel for kernel in found if kernel.kernel_id not in kernels]
            await kernels.adoption.adopt(new, _ADOPT_WITHIN_S)

        self._run(adopt())

    def _run(self, adoption: Coroutine[Any, Any, None]) -> None:
        """Run an adoption before the first request comes, if this is possible."""
        loop = self.serverapp.io_loop.asyncio_loop
        if loop.is_running():  # a server inside another program, which cannot wait here
            self._adopting = loop.create_task(adoption)
        else:
            loop.run_until_complete(adoption)

    def _add_pages(self) -> None:
        """Add the page `/roost`, and the handlers that JupyterLab calls for the status and outputs of kernels."""
        from .cluster_page import add_cluster_page
        from .kernel_status import add_kernel_status
        from .outputs import add_outputs

        add_cluster_page(self.serverapp.web_app)
        add_kernel_status(self.serverapp.web_app)
        add_outputs(self.serverapp.web_app)

    def _remember_kernels(self) -> None:
        """List the kernels behind a gateway that the earlier server had, before the first request comes."""
        from jupyter_server.gateway.connections import GatewayWebSocketConnection
        from jupyter_server.gateway.managers import GatewayMappingKernelManager
        from tornado.web import HTTPError

        from .gateway_kernels import PatientConnection, remember_kernels

        server, kernels = self.serverapp, self.serverapp.kernel_manager
        if server.kernel_websocket_connection_class is GatewayWebSocketConnection:
            server.kernel_websocket_connection_class = PatientConnection
            server.web_app.settings["kernel_websocket_connection_class"] = PatientConnection
        if type(kernels) is not GatewayMappingKernelManager:
            return
        self.log.info("roost: this server's kernels run behind a gateway, and the next server has them too.")
        remember_kernels(kernels, self.state, keeps=self.state.has_lock and self.on_server_stop != "stop")

        async def take_over() -> None:
            try:
                await asyncio.wait_for(kernels.take_over(), _ADOPT_WITHIN_S)
            except (HTTPError, asyncio.TimeoutError, OSError) as problem:
                self.log.warning("roost: the kernels of the earlier server are not listed yet: %s", problem)

        self._run(take_over())

    def _has_gateway_client(self) -> bool:
        return bool(self.serverapp.gateway_config.gateway_enabled)
