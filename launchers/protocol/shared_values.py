"""The values that both protocols share. They have their own module, so that clients need not import `messages`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import roost

VERSION = roost.__version__
PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def parse_version(version: str) -> tuple[int, ...]:
    """Return `"1.10.2"` as `(1, 10, 2)`, for comparisons. A part that is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The answer to a request that has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The user whom a kernel is for, and the application that holds it: a process on `host`.

    `process_started_at` is from `process.start_time`. `can_adopt`: it takes its kernels back after its own restart.
    """

    user: str
    application: str = ""
    host: str = ""
    pid: int = 0
    process_started_at: float = 0.0
    can_adopt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The address and keys of a kernel, as in Jupyter's connection file. The kernel chooses a port that is 0."""

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
        chosen: dict[str, Any] = {name: ports[name] for name in PORT_NAMES}
        return replace(self, **chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProcess:
    """The process of a kernel, as its agent knows it. `connection` is None in lists, because it has the keys.

    `exit_code` is as in `subprocess` (negative: the signal). It stays None if no agent watched the kernel's end.
    `device_ids` are those of its lease, or those that the agent chose for it.
    """

    kernel_id: str
    launch_id: str
    lease_id: str
    pid: int
    process_started_at: float
    how: Literal["forked", "exec"]
    connection: Connection | None
    launched_at: float
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    device_ids: tuple[str, ...] = ()
    is_running: bool = True
    exit_code: int | None = None
    reason: str = ""
    log_tail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelUse:
    """The CPU and memory that a kernel and all processes started by it use, without processes that have ended.

    `cpu_percent` of one CPU since the previous measurement. `rss_bytes` counts shared memory once for each process.
    """

    kernel_id: str
    processes: int = 0
    cpu_s: float = 0.0
    cpu_percent: float = 0.0
    rss_bytes: int = 0
