"""The values that the agent's protocol and the scheduler's share: apart, so that the scheduler's clients, which import
them in every application, need not make all the messages that only agents read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """No arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who a kernel is for (`user`), and the application that holds it.

    `pid` and `process_started_at` (as `process.start_time` gives it) name the application's process
    on `host`; `can_adopt` is true for an application that takes its kernels back after its own restart.
    """

    user: str
    application: str = ""
    host: str = ""
    pid: int = 0
    process_started_at: float = 0.0
    can_adopt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How a kernel is reached, as in Jupyter's connection file; a port of 0 lets the kernel choose."""

    ip: str = "127.0.0.1"
    transport: str = "tcp"
    shell_port: int = 0
    iopub_port: int = 0
    stdin_port: int = 0
    control_port: int = 0
    hb_port: int = 0
    key: str = field(default="", repr=False)
    signature_scheme: str = "hmac-sha256"
    kernel_name: str = ""
    jupyter_session: str = ""
    curve_publickey: str | None = None
    curve_secretkey: str | None = field(default=None, repr=False)

    def with_ports(self, ports: Mapping[str, int]) -> Connection:
        """The same connection on other ports, by their names in Jupyter's connection file."""
        return replace(
            self,
            shell_port=ports["shell_port"],
            iopub_port=ports["iopub_port"],
            stdin_port=ports["stdin_port"],
            control_port=ports["control_port"],
            hb_port=ports["hb_port"],
        )
