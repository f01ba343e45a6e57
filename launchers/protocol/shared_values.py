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
SERVER = "jupyter_server"
"""The name of each Jupyter Server as an application, and of Kernel Gateway and Voila, which are built on it."""
PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def name_connection_file(kernel_id: str) -> str:
    """Return the name of a kernel's connection file. As with plain Jupyter, notebooks find the kernel's id in it.

    Characters that cannot stand in a file's name, and those beyond the first 200, are left out.
    """
    name = "".join(each for each in kernel_id if each.isprintable() and each not in "/\\")
    return f"kernel-{name.encode()[:200].decode(errors='ignore')}.json"


def is_loopback(host: str) -> bool:
    """True if a name or an address, which may be in brackets, is that of the machine itself on every machine."""
    import ipaddress  # few programs ask

    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def parse_version(version: str) -> tuple[int, ...]:
    """Return `"1.10.2"` as `(1, 10, 2)`, for comparisons. A part that is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


def is_older(version: str) -> bool:
    """True if a service or an agent of this version is older than this roost.

    This is the rule of versions. A service or an agent of the same protocol is replaced if it is older, else it is
    used. Kernels stay. An agent of another protocol is left alone, and its kernels are named. A service of a lower
    protocol is replaced, because it holds nothing, unless its agents are of another protocol. One of a higher protocol
    is left alone.
    """
    return parse_version(version) < parse_version(VERSION)


OUT_OF_MEMORY = "its container ran out of memory"
"""A lost lease's reason begins with this text if the manager killed the processes for their use of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The empty answer to a request that has no result."""


@share_equal
@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The user whom a kernel is for, and the application that holds it."""

    user: str
    """The user's name, which may differ from the user of the service."""
    application: str = ""
    """The application's name for people, such as `jupyter_server`."""
    host: str = ""
    """The machine on which the application runs."""
    pid: int = 0
    """The application's process on `host`; 0: no process holds the kernel."""
    process_started_at: float = 0.0
    """The start time of that process, from `process.start_time`."""
    pid_namespace: str = ""
    """The namespace of `pid`, which means another process elsewhere; empty: that of every reader."""
    can_adopt: bool = False
    """True if the application takes its kernels back after its own restart."""
    server: str = ""
    """The server name of a Jupyter Server; empty for other programs."""


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
    interrupt_mode: str | None = None
    """`message` if the kernelspec asks for an interrupt by a message; else None. It is in no connection file."""

    def with_ports(self, ports: Mapping[str, int]) -> Connection:
        chosen: dict[str, Any] = {name: ports[name] for name in PORT_NAMES}
        return replace(self, **chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalLimits:
    """The size of a kernel's journal, which has the latest messages in memory."""

    memory_bytes: int = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProcess:
    """The process of a kernel, as its agent knows it."""

    kernel_id: str
    launch_id: str
    lease_id: str
    pid: int
    process_started_at: float
    """The start time of the process, from `process.start_time`."""
    how: Literal["forked", "exec"]
    """`forked` from a warm process, or started by `exec`."""
    why_not_forked: str = ""
    """Why an executed kernel was not forked, as a clause."""
    connection: Connection | None
    """None in lists, to keep its key secret."""
    launched_at: float
    """When the kernel was ready."""
    timing_ms: Mapping[str, float] = field(default_factory=dict)
    """How long the stages of the launch took."""
    device_ids: tuple[str, ...] = ()
    """The devices of the lease, or the devices that the agent chose."""
    is_running: bool = True
    exit_code: int | None = None
    """As in `subprocess` (negative: the signal). It stays None if the agent that had started the kernel is gone."""
    reason: str = ""
    """How an ended kernel has ended, as a clause."""
    is_out_of_memory: bool = False
    """True if the kernel was killed because it used more memory than it had asked for."""
    peak_bytes: int = 0
    """The most memory that the kernel used; 0 if unknown."""
    cpu_s: float = 0.0
    """The CPU time of the kernel; 0 if unknown."""
    log_tail: str = ""
    """The last part of the log of an ended kernel."""
    cwd: str = ""
    """The working directory of the kernel."""
    journal: JournalLimits = field(default_factory=JournalLimits)
    """How much of the kernel's output the agent keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelUse:
    """The CPU and memory that a kernel and all processes started by it use, without processes that have ended."""

    kernel_id: str
    processes: int = 0
    """How many processes there are."""
    cpu_s: float = 0.0
    """The CPU time of the processes."""
    cpu_percent: float = 0.0
    """The use of CPU since the previous measurement, in percent of one CPU."""
    memory_bytes: int = 0
    """The memory of the kernel's control group.

    Without such a group, shared pages count in proportion, except in very large processes.
    """
    gpu_memory_bytes: int = 0
    """0 where NVML does not report it."""
    read_bytes: int = 0
    """How much was read from disks since the processes began, without caches."""
    written_bytes: int = 0
    """How much was written to disks since the processes began, without caches."""
    execution_state: str = ""
    """`busy` or `idle`, or empty if that is not known."""
    idle_s: float = 0.0
    """How long the kernel has published nothing."""
    quiet_s: float = 0.0
    """How long all its processes have used almost no CPU or GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """A message that a kernel has published on IOPub, or a piece of it.

    The message's text joins its parts: header, parent header, metadata, content, and buffers in base64.
    """

    number: int
    """The place of the message in the journal."""
    lengths: tuple[int, ...]
    """The lengths of the parts in characters."""
    offset: int
    """Where `data` begins in the text."""
    data: str
    """The text from `offset` on, or a piece of it."""
    is_cut: bool = False
    """True if the journal has lost some earlier output of the same Jupyter request."""

    @property
    def end(self) -> int:
        """The `offset` at which the next piece of the message begins; 0 if this is the last piece."""
        end = self.offset + len(self.data)
        return end if end < sum(self.lengths) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalPage:
    """The answer to one read of a kernel's journal."""

    entries: tuple[JournalEntry, ...] = ()
    """The entries that the caller has chosen."""
    ids: tuple[str, ...] = ()
    """The message ids of all entries that were read, chosen or not.

    If the last of `entries` is only a piece of a message, `ids` and `read` leave it out.
    """
    first: int = 1
    """The number of the oldest entry in the journal."""
    read: int = 0
    """The number of the last entry that was read."""
    last: int = 0
    """The number of the newest entry in the journal."""
    state: str = ""
    """The kernel's execution state."""

    @property
    def is_last(self) -> bool:
        """True if the journal has no entries after this page."""
        return self.read >= self.last
