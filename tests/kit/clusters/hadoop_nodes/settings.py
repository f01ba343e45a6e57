"""The settings of all daemons of a cluster, and the files in which Hadoop reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

GPU = "yarn.io/gpu"
PARTITION = "vip"
"""The exclusive node label that a machine may have."""
Settings = Mapping[str, object]

_CORE = ("fs.", "hadoop.", "io.", "ipc.")
_CAPACITY = "yarn.scheduler.capacity."
_LOGGING = """
log4j.rootLogger=INFO,console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c{1}: %m%n
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The declared resources of one NodeManager. No GPU is real.

    `gpu_model` is the node attribute `gpu-model`. `attributes` has others. `label` is PARTITION or empty.
    """

    vcores: int = 8
    memory_mb: int = 8192
    gpus: int = 0
    gpu_model: str = ""
    label: str = ""
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def all_attributes(self) -> dict[str, str]:
        return {**({"gpu-model": self.gpu_model} if self.gpu_model else {}), **self.attributes}


PORTS = {"rm": (8030, 8031, 8032, 8033, 8088), "nm": (8040, 8041, 8042, 8048)}
"""The ports of the daemons, each at the daemon's own address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The addresses and files of a cluster. The daemons are `rm1` (and `rm2`), and `nm1`, `nm2` and so on."""

    folder: Path
    network: str
    resource_managers: tuple[str, ...]
    machines: Mapping[str, Machine]

    def address(self, name: str) -> str:
        """Return the address of a daemon. The address of a NodeManager is the name of its node in YARN."""
        return f"{self.network}.{int(name[2:]) + (10 if name.startswith('nm') else 1)}"

    def ports(self) -> Iterator[tuple[str, int]]:
        """Yield each address and port at which a daemon listens."""
        for name in (*self.resource_managers, *self.machines):
            yield from ((self.address(name), port) for port in PORTS[name[:2]])

    def configuration(self, name: str) -> Path:
        """Return the HADOOP_CONF_DIR of a daemon, or of `client`."""
        return self.folder / "conf" / name


def write(layout: Layout, changes: Settings, inherited: Sequence[str]) -> None:
    """Write the settings files of all daemons and clients. `changes` replace the settings of the same names.

    The processes in containers inherit the environment variables named by `inherited`.
    """
    common = {**_resource_managers(layout), **_common(layout)}
    own: dict[str, Settings] = {"client": {}}
    for name in layout.resource_managers:
        own[name] = {"yarn.resourcemanager.ha.id": name} if len(layout.resource_managers) > 1 else {}
    for name, machine in layout.machines.items():
        own[name] = _node(layout, name, machine, inherited)
    core = {"fs.defaultFS": "file:///", "hadoop.tmp.dir": f"{layout.folder}/tmp", **_chosen(changes, *_CORE)}
    capacity = {**_capacity(), **_chosen(changes, _CAPACITY)}
    rest = {key: value for key, value in changes.items() if not key.startswith((*_CORE, _CAPACITY))}
    for name, settings in own.items():
        every: Settings = {**common, **settings, **rest}
        folder = layout.configuration(name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log4j.properties").write_text(_LOGGING)
        for file, content in {
            "core-site": core,
            "yarn-site": every,
            "capacity-scheduler": capacity,
            "resource-types": _chosen(every, "yarn.resource-types"),
            "node-resources": _chosen(every, "yarn.nodemanager.resource-type."),
        }.items():
            (folder / f"{file}.xml").write_text(_site(content))


def _chosen(settings: Settings, *prefixes: str) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key.startswith(prefixes)}


def _site(settings: Settings) -> str:
    """Return the text of a Hadoop settings file."""
    rows = "".join(
        f"<property><name>{escape(key)}</name><value>{escape(_text(value))}</value></property>\n"
        for key, value in settings.items()
    )
    return f'<?xml version="1.0"?>\n<configuration>\n{rows}</configuration>\n'


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _resource_managers(layout: Layout) -> Settings:
    """Return the settings for the address of one ResourceManager, or of two with failover by hand."""
    names = layout.resource_managers
    if len(names) == 1:
        return {"yarn.resourcemanager.hostname": layout.address(names[0])}
    return {
        "yarn.resourcemanager.ha.enabled": True,
        "yarn.resourcemanager.ha.rm-ids": ",".join(names),
        "yarn.resourcemanager.ha.automatic-failover.enabled": False,
        "yarn.resourcemanager.ha.automatic-failover.embedded": False,
        "yarn.resourcemanager.cluster-id": "tests",
        **{f"yarn.resourcemanager.hostname.{name}": layout.address(name) for name in names},
        **{f"yarn.resourcemanager.webapp.address.{name}": f"{layout.address(name)}:8088" for name in names},
    }


def _common(layout: Layout) -> Settings:
    files, scheduler = f"file://{layout.folder}", "org.apache.hadoop.yarn.server.resourcemanager"
    return {
        "yarn.resourcemanager.scheduler.class": f"{scheduler}.scheduler.capacity.CapacityScheduler",
        "yarn.resource-types": GPU,
        f"yarn.resource-types.{GPU}.maximum-allocation": 8,
        "yarn.scheduler.minimum-allocation-mb": 128,
        "yarn.scheduler.maximum-allocation-mb": 8192,
        "yarn.scheduler.maximum-allocation-vcores": 8,
        "yarn.node-labels.enabled": True,
        "yarn.node-labels.fs-store.root-dir": f"{files}/labels",
        "yarn.node-attribute.fs-store.root-dir": f"{files}/attributes",
        "yarn.resourcemanager.recovery.enabled": True,
        "yarn.resourcemanager.store.class": f"{scheduler}.recovery.FileSystemRMStateStore",
        "yarn.resourcemanager.fs.state-store.uri": f"{files}/store",
        "yarn.resourcemanager.connect.retry-interval.ms": 1000,  # else 30 s without a node after a restart
        "yarn.resourcemanager.scheduler.monitor.enable": True,
        "yarn.resourcemanager.placement-constraints.handler": "scheduler",
        "yarn.nm.liveness-monitor.expiry-interval-ms": 15_000,
        "yarn.am.liveness-monitor.expiry-interval-ms": 60_000,
        "yarn.webapp.ui2.enable": False,
    }


def _node(layout: Layout, name: str, machine: Machine, inherited: Sequence[str]) -> Settings:
    address, home = layout.address(name), layout.folder / name
    attributes = ":".join(f"{key},STRING,{value}" for key, value in machine.all_attributes.items())
    return {
        "yarn.nodemanager.address": f"{address}:8041",
        "yarn.nodemanager.localizer.address": f"{address}:8040",
        "yarn.nodemanager.webapp.address": f"{address}:8042",
        "yarn.nodemanager.collector-service.address": f"{address}:8048",
        "yarn.nodemanager.bind-host": address,
        "yarn.nodemanager.local-dirs": home / "local",
        "yarn.nodemanager.log-dirs": home / "logs",
        "yarn.nodemanager.user-home-dir": home / "home",
        "yarn.nodemanager.env-whitelist": ",".join(
            ["JAVA_HOME", "HADOOP_CONF_DIR", "PATH", "LANG", "TZ", *inherited]
        ),
        "yarn.nodemanager.recovery.enabled": True,
        "yarn.nodemanager.recovery.supervised": True,
        "yarn.nodemanager.recovery.dir": home / "recovery",
        "yarn.nodemanager.resource.memory-mb": machine.memory_mb,
        "yarn.nodemanager.resource.cpu-vcores": machine.vcores,
        f"yarn.nodemanager.resource-type.{GPU}": machine.gpus,
        "yarn.nodemanager.disk-health-checker.max-disk-utilization-per-disk-percentage": 99.5,
        "yarn.nodemanager.vmem-check-enabled": False,
        "yarn.nodemanager.delete.debug-delay-sec": 0,
        "yarn.nodemanager.node-attributes.provider": "config",
        "yarn.nodemanager.node-attributes.provider.configured-node-attributes": attributes,
    }


def _capacity() -> Settings:
    """Return the settings of two queues of YARN. Only `default` may use the partition."""
    calculator = (
        "org.apache.hadoop.yarn.util.resource.DominantResourceCalculator"  # the other one knows no GPUs
    )
    rows: Settings = {
        "resource-calculator": calculator,
        "maximum-am-resource-percent": 0.5,
        "node-locality-delay": 40,
        "root.queues": "default,batch",
        "root.default.capacity": 60,
        "root.default.maximum-capacity": 100,
        "root.default.user-limit-factor": 2,
        "root.batch.capacity": 40,
        "root.batch.maximum-capacity": 100,
        "root.batch.user-limit-factor": 10,
        "root.accessible-node-labels": "*",
        f"root.accessible-node-labels.{PARTITION}.capacity": 100,
        "root.default.accessible-node-labels": PARTITION,
        f"root.default.accessible-node-labels.{PARTITION}.capacity": 100,
        "root.batch.accessible-node-labels": "",
    }
    return {_CAPACITY + key: value for key, value in rows.items()}
