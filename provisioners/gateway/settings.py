"""`c.RoostGateway`: the settings of `roost gateway`, and the checks of where it may listen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_config_path
from traitlets import Bool, Dict, Enum, Int, List, TraitError, Unicode
from traitlets.config import Config, LoggingConfigurable
from traitlets.config.loader import PyFileConfigLoader

from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import describe_unknown
from roost.scheduler.config.trait_errors import describe_refusal
from roost.scheduler.errors import ConfigError
from roost.scheduler.input_files import check_input
from roost.scheduler.messages import Finding, is_loopback

CONFIG_NAME = "roost_gateway_config.py"


class RoostGateway(LoggingConfigurable):
    """The settings of one gateway, in `roost_gateway_config.py`."""

    users = Enum(
        ("file", "header", "hub", "trust"),
        "file",
        config=True,
        help="The source of users, which names each caller.",
    )
    user_header = Unicode(
        "X-Forwarded-User", config=True, help="The header of a trusted proxy, for `header`."
    )
    hub_url = Unicode(config=True, help="The API of JupyterHub, for `hub`. Default: $JUPYTERHUB_API_URL.")
    hub_service = Unicode(config=True, help="This service's name there. Default: $JUPYTERHUB_SERVICE_NAME.")
    admins = List(Unicode(), config=True, help="People who may list and end the kernels of all.")
    shared_accounts = List(
        Unicode(),
        config=True,
        help="Backends that may start kernels although people share one account there.",
    )
    impersonate = List(
        Unicode(),
        config=True,
        help="Backends whose kernels run as the person who asks, by `roost gateway sudoers`.",
    )
    client_envs = List(Unicode(), config=True, help="More variables that a client may set for its kernel.")
    allowed_values = Dict(
        value_trait=List(Unicode()),
        config=True,
        help="The values that a client may give a variable: {'KERNEL_IMAGE': ['team/python:*']}.",
    )
    user_variables = Dict(
        value_trait=Unicode(),
        config=True,
        help="Variables of each kernel, which no client changes: {'KERNEL_NAMESPACE': 'nb-{user}'}; also {uid}, {gid}.",
    )
    inherited_envs = List(Unicode(), config=True, help="More of the gateway's own variables for all kernels.")
    max_kernels = Int(None, allow_none=True, min=0, config=True, help="Kernels that all may have together.")
    max_kernels_per_user = Int(None, allow_none=True, min=0, config=True, help="Kernels that one may have.")
    allow_plain_http = Bool(False, config=True, help="Listen beyond this machine without TLS.")
    audit_file = Unicode(config=True, help="Default: gateway/audit.jsonl in roost's state folder.")

    def find_hub(self) -> tuple[str, str]:
        """Return the address of the hub's API and the name of this service. Raises `ConfigError`."""
        url = self.hub_url or os.environ.get("JUPYTERHUB_API_URL", "")
        service = self.hub_service or os.environ.get("JUPYTERHUB_SERVICE_NAME", "")
        if not url or not service:
            raise ConfigError("users = 'hub' needs c.RoostGateway.hub_url and hub_service: set both.")
        return url.rstrip("/"), service

    def check_impersonation(self) -> None:
        """Raise `ConfigError` if kernels could not run as a person, or as one who has only said a name."""
        if self.impersonate and self.users == "trust":
            raise ConfigError(
                "users = 'trust' believes each name, so no kernel may run as that person: empty impersonate."
            )
        for backend in self.impersonate:
            if not get_spec(backend).runs_as_its_user:
                raise ConfigError(
                    f"impersonate: the kernels of {backend} do not run as the user who starts them. Leave it out."
                )

    def check_address(self, *, ip: str, sock: str, has_tls: bool, allow_origin: str) -> None:
        """Raise `ConfigError` if the gateway would listen where its source of users is not safe."""
        if self.users == "header" and not sock:
            raise ConfigError(
                "users = 'header' believes whoever reaches the gateway: set c.ServerApp.sock, and let the proxy alone "
                "connect with it."
            )
        if allow_origin == "*" and self.users in ("header", "trust"):
            raise ConfigError(
                "c.ServerApp.allow_origin = '*' lets every web site start kernels: name the sites."
            )
        if not (sock or has_tls or is_loopback(ip) or self.allow_plain_http):
            raise ConfigError(
                f"Without TLS, everybody on the way from {ip or 'all addresses'} can read the tokens: set "
                "c.ServerApp.certfile and keyfile, or listen on 127.0.0.1 behind a proxy, or set "
                "c.RoostGateway.allow_plain_http = True."
            )

    def describe_sharing(self) -> str:
        """Return what people on one account can do to each other, as a sentence; empty if nobody shares one."""
        if self.users == "trust":
            return "All callers are one person for the gateway: each can use and end the kernels of all."
        if not self.shared_accounts:
            return ""
        names = ", ".join(self.shared_accounts)
        return (
            f"The kernels of {names} run on one account: each person's code there can read the files, the kernels and "
            "the gateway's own secrets, and can end all of them."
        )


def read_config(file: str = "") -> Config:
    """Return the configuration in `file`, or in the first `roost_gateway_config.py` on Jupyter's path.

    It is empty without a file. Raises `ConfigError`.
    """
    path = Path(file) if file else _find_file()
    if path is None:
        return Config()
    if not path.is_file():
        raise ConfigError(f"There is no configuration file {path}.")
    check_input(path)
    try:
        config = PyFileConfigLoader(path.name, path=str(path.parent)).load_config()
    except (Exception, SystemExit) as problem:  # noqa: BLE001 - a configuration file is anybody's Python
        reason = " ".join(str(problem).split())[:500]
        raise ConfigError(f"{path} cannot be read: {type(problem).__name__}: {reason}") from None
    known = RoostGateway.class_traits(config=True)
    for name in config.get("RoostGateway", {}):
        if name not in known:
            raise ConfigError(f"{path}: {describe_unknown('option of c.RoostGateway', name, known)}")
    return config


def build_settings(config: Config) -> RoostGateway:
    """Return the settings in a configuration. Raises `ConfigError`."""
    try:
        return RoostGateway(config=config)
    except TraitError as problem:
        given: Mapping[str, Any] = config.get("RoostGateway", {})
        wrong = describe_refusal(problem, RoostGateway, given)
        raise ConfigError(f"A setting of c.RoostGateway is wrong: {' '.join(wrong.split())}") from None


def find_problems() -> list[Finding]:
    """Return what `roost doctor` says about the gateway that this user's configuration describes."""
    if _find_file() is None:
        return []
    try:
        sharing = build_settings(read_config()).describe_sharing()
    except ConfigError as problem:
        return [{"level": "error", "what": str(problem), "do": "correct it before the gateway starts again"}]
    do = (
        "give the gateway to people who trust each other, or start their kernels on a backend with own places"
    )
    return [{"level": "warning", "what": sharing.rstrip("."), "do": do}] if sharing else []


def _find_file() -> Path | None:
    return next(
        (file for folder in jupyter_config_path() if (file := Path(folder, CONFIG_NAME)).is_file()), None
    )
