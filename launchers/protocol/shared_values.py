"""The values that the agent's and the service's protocol share. Clients import them without `messages`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import roost
from roost.placement.model.json_codec import share_equal

VERSION = roost.__version__
LAST_LINE = "; its last line: "
"""In a reason, the text after this phrase quotes a kernel's output.

The kernel's owner may read that text, but no log may contain it.
"""
PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def parse_version(version: str) -> tuple[int, ...]:
    """Return `"1.10.2"` as `(1, 10, 2)`, for comparisons. A part that is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


OUT_OF_MEMORY = "its container ran out of memory"
"""A lost lease's reason begins with this text if the manager killed the processes for their use of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The empty answer to a request that has no result."""


@share_equal
@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The user whom a kernel is for, and the application that holds it: a process on `host`.

    `process_started_at` is from `process.start_time`. `can_adopt`: the application takes its kernels back
    after its own restart. `server` is the server name of a Jupyter Server, and empty for other programs.
    """

    user: str
    application: str = ""
    host: str = ""
    pid: int = 0
    process_started_at: float = 0.0
    can_adopt: bool = False
    server: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """The address and keys of a kernel, as in Jupyter's connection file.

    If a port is 0, the kernel chooses it.
    """

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
class JournalLimits:
    """The size of a kernel's journal: the latest messages in memory, and older messages in a file."""

    memory_bytes: int = 16 << 20
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProcess:
    """The process of a kernel, as its agent knows it. `connection` is None in lists, to keep its key secret.

    `exit_code` is as in `subprocess` (negative: the signal). It stays None if no agent watched the kernel's
    end. `device_ids` come from its lease, or the agent chose them. `cwd` is its working directory. `reason`
    says how an ended kernel has ended, as a clause. `is_out_of_memory`: the kernel was killed because it used
    more memory than it had asked for. `peak_bytes` is the most memory that it used, `cpu_s` its CPU time; 0
    if unknown.
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
    is_out_of_memory: bool = False
    peak_bytes: int = 0
    cpu_s: float = 0.0
    log_tail: str = ""
    cwd: str = ""
    journal: JournalLimits = field(default_factory=JournalLimits)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelUse:
    """The CPU and memory that a kernel and all processes started by it use, without processes that have ended.

    `cpu_percent` is in percent of one CPU, since the previous measurement. `memory_bytes` is the memory of
    the kernel's control group. Without such a group, shared pages count in proportion, except in very large
    processes. `gpu_memory_bytes` is 0 where NVML does not report it. `read_bytes` and `written_bytes` went
    from and to disks since the processes began, without caches. `execution_state` is `busy` or `idle`, or
    empty if that is not known. `idle_s` is how long the kernel has published nothing. `quiet_s` is how long
    all its processes have used almost no CPU or GPU.
    """

    kernel_id: str
    processes: int = 0
    cpu_s: float = 0.0
    cpu_percent: float = 0.0
    memory_bytes: int = 0
    gpu_memory_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    execution_state: str = ""
    idle_s: float = 0.0
    quiet_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """A message that a kernel has published on IOPub, or a piece of it.

    The message's text joins its parts: header, parent header, metadata, content, and buffers in base64. `lengths` are
    the lengths of the parts in characters. `data` is the text from `offset` on, or a piece of it. `is_cut`: the journal
    has lost some earlier output of the same Jupyter request.
    """

    number: int
    lengths: tuple[int, ...]
    offset: int
    data: str
    is_cut: bool = False

    @property
    def end(self) -> int:
        """The `offset` at which the next piece of the message begins; 0 if this is the last piece."""
        end = self.offset + len(self.data)
        return end if end < sum(self.lengths) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalPage:
    """The answer to one read of a kernel's journal. `entries` are the entries that the caller has chosen.

    `ids` has the message ids of all entries that were read, chosen or not, and `read` is the number of the
    last one. If the last of `entries` is only a piece of a message, `ids` and `read` leave it out. `first`
    and `last` are the numbers of the oldest and the newest entry in the journal. `state` is the kernel's
    execution state.
    """

    entries: tuple[JournalEntry, ...] = ()
    ids: tuple[str, ...] = ()
    first: int = 1
    read: int = 0
    last: int = 0
    state: str = ""

    @property
    def is_last(self) -> bool:
        """True if the journal has no entries after this page."""
        return self.read >= self.last
