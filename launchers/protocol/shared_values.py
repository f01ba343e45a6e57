"""The values that both protocols share. They have their own module, so that clients need not import `messages`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import roost
from roost.placement.json_codec import share_equal

VERSION = roost.__version__
LAST_LINE = "; its last line: "
"""Behind it, a reason quotes what a kernel wrote: for its owner, and for no log."""
PORT_NAMES = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def parse_version(version: str) -> tuple[int, ...]:
    """Return `"1.10.2"` as `(1, 10, 2)`, for comparisons. A part that is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))


OUT_OF_MEMORY = "its container ran out of memory"
"""The reason of a lost lease begins like this if the manager has ended the processes for their memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """The answer to a request that has none."""


@share_equal
@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The user whom a kernel is for, and the application that holds it: a process on `host`.

    `process_started_at` is from `process.start_time`. `can_adopt`: it takes its kernels back after its own restart.
    `server` is the name of the Jupyter Server, which the next server of that name has too; empty for other programs.
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
class JournalLimits:
    """How much of what a kernel publishes its agent keeps: in memory, and older messages in a file."""

    memory_bytes: int = 16 << 20
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProcess:
    """The process of a kernel, as its agent knows it. `connection` is None in lists, because it has the keys.

    `exit_code` is as in `subprocess` (negative: the signal). It stays None if no agent watched the kernel's end.
    `device_ids` come from its lease, or the agent chose them. `cwd` is its working directory.
    `reason` says how an ended kernel has ended, as a clause. `is_out_of_memory`: it was killed because it used more
    than it had asked for. `peak_bytes` is the most memory that it used, and `cpu_s` its CPU time; 0 if nobody knows.
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

    `cpu_percent` of one CPU since the previous measurement. `memory_bytes` is that of its control group. Without one,
    only a part of each shared page counts. `gpu_memory_bytes` is 0 where NVML does not report it.
    `read_bytes` and `written_bytes` went from and to disks since the processes began, without caches.
    `execution_state` is `busy` or `idle`, or empty if that is not known. `idle_s`: it has published nothing for so
    long. `quiet_s`: for so long, it and its processes have used almost no CPU or GPU.
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

    `data` is the text of its parts from `offset` on: header, parent header, metadata, content, and buffers in base64.
    `lengths` are those of the parts, in characters. `is_cut`: earlier messages for the same request are gone.
    """

    number: int
    lengths: tuple[int, ...]
    offset: int
    data: str
    is_cut: bool = False

    @property
    def end(self) -> int:
        """Where the next piece begins; 0 if this was the last one."""
        end = self.offset + len(self.data)
        return end if end < sum(self.lengths) else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalPage:
    """The chosen entries of a part of a kernel's journal.

    `ids` has the message ids of all entries of that part, chosen or not, and `read` the number of the last of them. The
    last entry may be a piece, and is then not counted.
    `first` and `last` are the numbers of the oldest and the newest entry of the journal. `state` is the kernel's.
    """

    entries: tuple[JournalEntry, ...] = ()
    ids: tuple[str, ...] = ()
    first: int = 1
    read: int = 0
    last: int = 0
    state: str = ""

    @property
    def is_last(self) -> bool:
        """True if there was nothing more to read."""
        return self.read >= self.last
