"""The messages between roost's service and its application master, which is an `RpcServer`.

    hello()               → MasterStatus
    put_archive(Archive)  → Nothing              keep the code of containers, by its digest
    ask(Ask)              → Container            at once, `asked`; events report what becomes of it
    widen(Widen)          → Container            let a waiting ask go to other nodes too
    update(Update)        → Container            keep another lease text
    probe(Probe)          → Probed               does this NodeManager answer?
    release(Numbered)     → Nothing              withdraw the ask, or stop and release the container
    containers()          → tuple of Container   all that the master knows
    finish()              → Nothing              end the application, if it has no asks and no containers
    subscribe()           → Nothing              from then on MasterEvents

Errors (`RemoteError.kind`): `unknown_archive` (call `put_archive` and repeat), `too_large` (more than the cluster's
maximum, with field `maximum`), `unknown_container`, `ending` (of `ask`), `not_empty` and `away` (of `finish`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

PROTOCOL = 1
"""The version of this protocol. A master and a service must have the same one."""

CODE_ALIAS = "roost"
"""The name of the secret, in the credentials of a container, that holds the zip archive which Python runs."""
SETTINGS_ENTRY = "settings.json"
"""The file in the master's own archive that holds its `MasterSettings`."""

State = Literal["asked", "granted", "started", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Amounts of memory in MiB, of virtual cores, and of other resource types: `{"yarn.io/gpu": 2}`."""

    memory_mb: int
    vcores: int
    others: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterStatus:
    """The state of a master."""

    protocol: int
    application_id: str
    attempt: int
    queue: str
    maximum: Resources
    """The largest container of the cluster."""
    headroom: Resources | None = None
    """The resources that the queue and the user's limit still allow.

    None before the first answer of the ResourceManager.
    """
    archives: tuple[str, ...] = ()
    """The digests of the archives that the master has."""
    is_away: bool = False
    """True if the ResourceManager does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A zip archive that Python can run, for containers. `digest` is chosen by the service."""

    digest: str
    data_base64: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unpacked:
    """An archive that the NodeManager copies and unpacks into the folder `name` of a container.

    Its size and its time of modification (in ms) must be right, or the NodeManager refuses it.
    """

    name: str
    url: str
    size_bytes: int
    modified_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request for one container, which the master starts as soon as it is granted. May be repeated."""

    number: int
    """Identifies the ask. It has at most 63 bits."""
    lease: str
    resources: Resources
    nodes: tuple[str, ...] = ()
    """Hosts of NodeManagers. If there are none, every node may take the container."""
    racks: Mapping[str, str] = field(default_factory=dict)
    """The rack of each host."""
    label: str = ""
    command: str
    """Run by bash, unescaped. Its `$HADOOP_TOKEN_FILE_LOCATION` is the file that holds the archive."""
    unpacked: tuple[Unpacked, ...] = ()
    archive: str
    assignment_base64: str = field(default="", repr=False)
    """`start_archive.add_start` adds this to the archive, decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Widen:
    """A request to let a waiting ask go to any of these nodes; to every node if there are none. May be repeated."""

    number: int
    nodes: tuple[str, ...] = ()
    racks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """A request to keep another lease text with an ask or container."""

    number: int
    lease: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A request to check whether the NodeManager at `host:port` answers."""

    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """The answer to a `Probe`: whether the NodeManager has answered within a second."""

    answers: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """A request about the ask or container with this number."""

    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """An ask, and the container that YARN has granted for it.

    An ended container is reported until it is released, or for ten minutes.
    """

    number: int
    lease: str
    """Empty for containers of earlier attempts."""
    state: State
    resources: Resources
    """The resources that were granted, or those asked for."""
    node: str = ""
    """The host of its NodeManager."""
    container_id: str = ""
    exit_status: int | None = None
    """YARN's exit status (-100 lost, -102 preempted), and None before the state is `ended`."""
    diagnostics: str = ""
    asked_at: float = 0.0
    """In seconds since the epoch, 0 if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterEvent:
    """An event of one of six kinds, which goes to all subscribers.

    `container`: `container` has another state. `preempt`: YARN takes `container` back soon (`text` is "strict"), or
    would like to (`text` is "contract"). `away`, `back`: the ResourceManager does not answer, or answers again.
    `nodes`: the state of nodes has changed; `text` names them. `idle`: there are no asks and no containers. The master
    exits if no service receives this event.
    """

    kind: Literal["container", "away", "back", "preempt", "nodes", "idle"]
    container: Container | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MasterSettings:
    """The settings of a master, in a file of its archive. Only the user's own processes can read them.

    The keys are CURVE keys (Z85 text).
    """

    schedulers: tuple[str, ...]
    """The `host:port` of the ResourceManagers' scheduler addresses."""
    public_key: str
    secret_key: str = field(repr=False)
    clients: tuple[str, ...]
    """The public keys of callers."""
    ports: tuple[int, ...] = (0,)
    """The master listens on the first free one; 0 is any free port."""
    idle_exit_s: float = 600.0
    """The master leaves after this time without subscribers, asks and containers."""
    grace_s: float = 300.0
    """The master leaves once its token was invalid for this time."""
