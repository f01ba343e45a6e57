"""The application: Jupyter Server with roost's extension and the parts of a gateway, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from jupyter_server.serverapp import ServerApp
from tornado.ioloop import PeriodicCallback
from traitlets.config import Config

from roost.placement.model.format import format_count
from roost.provisioners.provisioner import RoostProvisioner
from roost.provisioners.server_extension import RoostExtension
from roost.scheduler.errors import ConfigError
from roost.scheduler.messages import is_loopback

from .audit import Audit
from .gateway import Gateway
from .handlers import Channels, close_routes
from .identity import GatewayIdentity
from .kernels import GatewayKernels
from .operator_socket import open_socket
from .own_kernels import OwnKernels, OwnKernelsOnly
from .relays import Relays
from .settings import build_settings, read_config
from .user_sources import build_source

_NAME = "roost-gateway"
"""The server name, unless the configuration has one. Two gateways of one name are one after the other."""
_CHECK_AGAIN_MS = 20_000
"""How often the callers of open websockets are checked again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRules:
    """The rules of the scheduler's configuration that the gateway needs before a start."""

    check_user: Callable[[str, str], None]
    default_timeout_s: float


class GatewayExtension(RoostExtension):
    """roost's extension in a gateway: it waits for the end of an earlier one, and has no page."""

    waits_for_name = True

    def link(self) -> None:
        """Take the server's name, and with it the kernels, their people and their variables."""
        super().link()
        if not self.state.has_lock:
            raise ConfigError(f"The gateway cannot keep its kernels: {self.state.problem}.")
        self.serverapp.gateway.own = OwnKernels(self.state.folder, self.log)

    def load(self) -> None:
        """Add roost's parts. The kernels of an earlier gateway are adopted here."""
        super().load()
        gateway, kernels = self.serverapp.gateway, self.serverapp.kernel_manager
        gateway.own.forget_unfinished(self.state.kernels)
        if adopted := len(kernels.list_kernel_ids()):
            gateway.audit.write("takeover", sentence=format_count(adopted, "kernel"))

    def say_what_is_kept(self, kept: list[RoostProvisioner]) -> None:
        """Log how many kernels go on, and give up the server's name with the records of the kernels."""
        self.serverapp.gateway.own.close()
        super().say_what_is_kept(kept)

    async def start(self) -> None:
        """Open the operator's socket, and watch the open websockets."""
        await super().start()
        self._operator = open_socket(self.serverapp.kernel_manager, self.state.folder.name)
        self._checks = PeriodicCallback(Channels.check_all, _CHECK_AGAIN_MS)
        self._checks.start()

    def _add_pages(self) -> None:
        """Add nothing: a gateway's routes are a closed list."""


class GatewayApp(ServerApp):  # type: ignore[misc]
    """The application of `roost gateway`. It reads `roost_gateway_config.py` and no other configuration."""

    name = "roost-gateway"
    description = "Jupyter kernels of roost for many people"
    default_services = ()
    rules: UserRules
    file = ""
    gateway: Gateway

    def load_config_file(self, suppress_errors: bool = True) -> None:
        """Read the configuration, check it, and set what a gateway cannot do without. Raises `ConfigError`."""
        config = read_config(self.file)
        self.update_config(config)
        settings = build_settings(config)
        if os.environ.get("JUPYTER_GATEWAY_URL") or "url" in config.GatewayClient:
            raise ConfigError(
                "This gateway would pass its kernels on to another one: unset JUPYTER_GATEWAY_URL."
            )
        settings.check_address(
            ip=self.ip, sock=self.sock, has_tls=bool(self.certfile), allow_origin=self.allow_origin
        )
        settings.check_impersonation()
        is_open = settings.users == "trust" and not self.sock and is_loopback(self.ip or "0.0.0.0")
        self.gateway = Gateway(
            settings=settings,
            source=build_source(settings, asks_for_token=not is_open),
            audit=Audit(settings.audit_file, self.log, source=settings.users),
            check_user=self.rules.check_user,
            default_timeout_s=self.rules.default_timeout_s,
            relays=Relays(self.log),
        )
        self.no_browser_open_file = True
        self.update_config(_force(config, is_open=is_open, is_behind_proxy=settings.users == "header"))

    def init_server_extensions(self) -> None:
        """Say first what people can do to each other here. Then load roost's extension, and no other."""
        if sharing := self.gateway.settings.describe_sharing():
            self.log.warning("roost: %s", sharing)
        super().init_server_extensions()

    def load_server_extensions(self) -> None:
        super().load_server_extensions()
        close_routes(self.web_app, self.base_url)


def _force(config: Config, *, is_open: bool, is_behind_proxy: bool) -> Config:
    """Return the options of Jupyter Server that make it a gateway. They win over those in the file."""
    options: dict[str, object] = {
        "jpserver_extensions": {"roost.provisioners.gateway": True},
        "reraise_server_extension_failures": True,
        "kernel_manager_class": GatewayKernels,
        "identity_provider_class": GatewayIdentity,
        "authorizer_class": OwnKernelsOnly,
        "allow_unauthenticated_access": False,
        # Without a token, a web page could otherwise reach the gateway under a name of its own.
        "allow_remote_access": not is_open,
        "extra_services": [],
        "port_retries": 0,
        "max_body_size": 1 << 20,  # a body is in memory before anybody knows who calls
        "open_browser": False,
    }
    if is_behind_proxy:
        options["sock_mode"] = "0660"  # others could name themselves
    extension: dict[str, object] = {"on_server_stop": "keep", "pending_starts": True}
    extension["server_name"] = config.RoostExtension.get("server_name") or _NAME
    return Config({"GatewayApp": options, "GatewayExtension": extension})


def serve(rules: UserRules, file: str = "") -> None:
    """Run a gateway until it is stopped. `file` is its configuration. Raises `ConfigError`."""
    application = GatewayApp.instance()
    application.rules, application.file = rules, file
    application.initialize(argv=[], find_extensions=False)
    application.start()
