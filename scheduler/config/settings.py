"""The operator's settings: read with traitlets from `jupyter_roost_config.py|json`, frozen from then on.

The service loads them itself, from Jupyter's configuration path: a kernelspec can ask, but not set.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from jupyter_core.paths import jupyter_config_path
from traitlets import Bool, Dict, Float, Int, List, TraitError, Unicode, Union
from traitlets.config import Config, Configurable
from traitlets.config.loader import ConfigFileNotFound, JSONFileConfigLoader, PyFileConfigLoader

from roost.placement.shipped_policies import SHIPPED
from roost.scheduler.errors import ConfigError
from roost.scheduler.service.operations import check_backend

from .memory_size import parse_bytes

CONFIG_NAME = "jupyter_roost_config"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSettings:
    """What this machine is declared to have; None: measured. `preload`: modules that forked kernels start with.

    Only kernels that tolerate all `taints` run here.
    """

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    gpu_model: str = ""
    preload: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedSettings:
    """How a cluster is joined, and what agents on its nodes are like; see the traits of the same names."""

    address: str = ""
    python: str = ""
    preload: tuple[str, ...] = ()
    manager_grace_s: float = 300.0
    agent_idle_exit_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DaskSettings(ManagedSettings):
    """The same of a Dask cluster, and the files for TLS."""

    tls_ca_file: str = ""
    tls_cert: str = ""
    tls_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The scheduler's settings; see the traits of the same names. A cap of None is no cap."""

    max_kernels_per_user: int | None = None
    max_cpus_per_kernel: float | None = None
    max_memory_bytes_per_kernel: int | None = None
    max_gpus_per_kernel: float | None = None
    max_cpus_per_user: float | None = None
    max_memory_bytes_per_user: int | None = None
    max_gpus_per_user: float | None = None
    allowed_users: frozenset[str] = frozenset()
    denied_users: frozenset[str] = frozenset()
    default_policy: str = "balanced"
    policies: Mapping[str, str] = field(default_factory=dict)
    policy_timeout_s: float = 1.0
    allow_client_policies: bool = True
    default_cpus: float = 0.0
    default_memory_bytes: int = 0
    default_gpus: float = 0.0
    owner_grace_s: float = 10.0
    orphan_after_s: float = 86_400.0
    restart_grace_s: float = 10.0
    claim_grace_s: float = 5.0
    reserve_after_s: float = 30.0
    idle_exit_s: float = 300.0
    local: LocalSettings = field(default_factory=LocalSettings)
    ray: ManagedSettings = field(default_factory=ManagedSettings)
    dask: DaskSettings = field(default_factory=DaskSettings)


def _cap(help_text: str) -> Any:
    return Float(None, allow_none=True, min=0.0, help=f"{help_text} (None: no cap).").tag(config=True)


def _memory(default: int | None, help_text: str) -> Any:
    kinds = [Int(min=0), Unicode()]
    return Union(kinds, default_value=default, allow_none=default is None, help=help_text).tag(config=True)


def _seconds(default: float, help_text: str) -> Any:
    return Float(default, min=0.0, help=help_text).tag(config=True)


class RoostScheduler(Configurable):  # type: ignore[misc,unused-ignore]
    """`c.RoostScheduler`: who may have how much, and how long things are kept."""

    max_kernels_per_user = Int(
        None, allow_none=True, min=0, help="Kernels that one user may have (None: no cap)."
    ).tag(config=True)
    max_cpus_per_kernel = _cap("CPUs that one kernel may ask for")
    max_gpus_per_kernel = _cap("GPUs that one kernel may ask for")
    max_cpus_per_user = _cap("CPUs that the kernels of one user may have together")
    max_gpus_per_user = _cap("GPUs that the kernels of one user may have together")
    max_memory_per_kernel = _memory(None, "Memory that one kernel may ask for: '8GiB' or bytes.")
    max_memory_per_user = _memory(None, "Memory that the kernels of one user may have together.")
    allowed_users = List(Unicode(), help="Who may start kernels; empty: everybody who is not denied.").tag(
        config=True
    )
    denied_users = List(Unicode(), help="Who may not start kernels.").tag(config=True)
    default_policy = Unicode("balanced", help="Placement policy of kernels that name none.").tag(config=True)
    policies = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="More policies that kernels may name: name → 'module:Name' or 'path/to/file.py:Name', loaded by the "
        "service; a path is relative to the configuration file's folder.",
    ).tag(config=True)
    policy_timeout_s = Float(
        1.0, min=0.01, help="A policy that is not shipped and takes longer is left out of that decision."
    ).tag(config=True)
    allow_client_policies = Bool(
        True,
        help="Whether programs may have the service run policies of theirs (`add_policy` of the client).",
    ).tag(config=True)
    default_cpus = Float(0.0, min=0.0, help="CPUs for kernels that say nothing.").tag(config=True)
    default_gpus = Float(0.0, min=0.0, help="GPUs for kernels that say nothing.").tag(config=True)
    default_memory = _memory(0, "Memory for kernels that say nothing.")
    owner_grace_s = _seconds(10.0, "After the end of an application that cannot adopt, its kernels end.")
    orphan_after_s = _seconds(86_400.0, "Kernels for which nobody comes back end after this time.")
    restart_grace_s = _seconds(10.0, "How long a kernel that died keeps its lease, to be restarted.")
    claim_grace_s = _seconds(5.0, "How long a lease without a kernel may wait for its start to be repeated.")
    reserve_after_s = _seconds(30.0, "Who has waited longer has a node kept free of those who came later.")
    idle_exit_s = _seconds(300.0, "The service leaves after this time without clients and kernels.")


class RoostLocalBackend(Configurable):  # type: ignore[misc,unused-ignore]
    """`c.RoostLocalBackend`: what this machine has to give; what is not said is measured."""

    cpus = Float(None, allow_none=True, min=0.0, help="CPUs to give out.").tag(config=True)
    memory = _memory(None, "Memory to give out: '8GiB' or bytes.")
    gpus = Int(None, allow_none=True, min=0, help="GPUs to give out.").tag(config=True)
    gpu_model = Unicode("", help="Model of the declared GPUs.").tag(config=True)
    preload = List(Unicode(), help="Modules that are imported before kernels are forked.").tag(config=True)
    labels = Dict(
        key_trait=Unicode(), value_trait=Unicode(), help="Labels that kernels can ask for: name → text."
    ).tag(config=True)
    taints = List(
        Unicode(), help="What keeps kernels off this machine that do not say that they tolerate it."
    ).tag(config=True)


class _ManagedBackend(Configurable):  # type: ignore[misc,unused-ignore]
    python = Unicode(
        "",
        help="Interpreter of roost's agents on the nodes; empty: that of the cluster manager's processes there.",
    ).tag(config=True)
    preload = List(Unicode(), help="Modules that are imported before kernels are forked.").tag(config=True)
    manager_grace_s = _seconds(300.0, "How long kernels live on when the whole cluster is lost.")
    agent_idle_exit_s = _seconds(3600.0, "Agents leave their nodes after this time without leases.")


class RoostRayBackend(_ManagedBackend):
    """`c.RoostRayBackend`: which Ray cluster, and what runs on its nodes."""

    address = Unicode(
        "", help="Where Ray's GCS listens, host:port; empty: RAY_ADDRESS, else the cluster of this machine."
    ).tag(config=True)


class RoostDaskBackend(_ManagedBackend):
    """`c.RoostDaskBackend`: which Dask cluster, and what runs on its workers' machines."""

    address = Unicode(
        "",
        help="Where Dask's scheduler listens, tcp://host:port or tls://host:port, or the path of its scheduler file; "
        "empty: DASK_SCHEDULER_ADDRESS, else Dask's configuration.",
    ).tag(config=True)
    tls_ca_file = Unicode(
        "",
        help="Certificate of the authority, for tls://; empty: as in Dask's configuration, like the next two.",
    ).tag(config=True)
    tls_cert = Unicode("", help="Certificate by which roost is known to the cluster.").tag(config=True)
    tls_key = Unicode("", help="File with the key of that certificate.").tag(config=True)


_CLASSES: Mapping[str, type[Configurable]] = {
    "RoostScheduler": RoostScheduler,
    "RoostLocalBackend": RoostLocalBackend,
    "RoostRayBackend": RoostRayBackend,
    "RoostDaskBackend": RoostDaskBackend,
}

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "local": ("cpus", "memory_bytes", "gpus", "gpu_model", "labels", "taints", "config_file"),
    "ray": ("address", "python", "config_file"),
    "dask": ("address", "python", "tls_ca_file", "tls_cert", "tls_key", "config_file"),
}
"""By backend, what `roost.connect` takes: what overrules the configuration's, and which file that is."""


def load(backend: str, options: Mapping[str, Any], *, path: Sequence[str] | None = None) -> Settings:
    """The settings for a backend; raises `ConfigError` that names the key, and what was meant where it can guess.

    Reads `config_file` from the options, else every `jupyter_roost_config` on `path` (default: Jupyter's), the
    first in the path having the last word. The defaults are traitlets', the same as those of `Settings`.
    """
    check_backend(backend)
    for name in options:
        if name not in OPTIONS[backend]:
            raise ConfigError(_unknown(f"option of the backend {backend}", name, OPTIONS[backend]))
    config = _read(options.get("config_file") or "", jupyter_config_path() if path is None else path)
    for section, values in config.items():
        if section not in _CLASSES:
            raise ConfigError(_unknown("section", f"c.{section}", [f"c.{name}" for name in _CLASSES]))
        known = list(_CLASSES[section].class_traits(config=True))
        for name in values:
            if name not in known:
                raise ConfigError(_unknown(f"option of c.{section}", name, known))
    declared = {name: value for name, value in options.items() if name != "config_file" and value is not None}
    if "memory_bytes" in declared:
        declared["memory"] = declared.pop("memory_bytes")
    config.merge(Config({f"Roost{backend.capitalize()}Backend": declared}))
    try:
        return _frozen(
            RoostScheduler(config=config),
            RoostLocalBackend(config=config),
            RoostRayBackend(config=config),
            RoostDaskBackend(config=config),
        )
    except TraitError as problem:
        raise ConfigError(f"a setting is wrong: {' '.join(str(problem).split())}") from None


def _read(config_file: str, path: Sequence[str]) -> Config:
    config = Config()
    found = [Path(config_file)] if config_file else []
    if config_file and not found[0].is_file():
        raise ConfigError(f"there is no configuration file {config_file}.", config_file=config_file)
    for folder in reversed([] if config_file else list(path)):
        candidates = (Path(folder, f"{CONFIG_NAME}{suffix}") for suffix in (".py", ".json"))
        found += [candidate for candidate in candidates if candidate.is_file()]
    for file in found:
        loader = JSONFileConfigLoader if file.suffix == ".json" else PyFileConfigLoader
        try:
            found_here = loader(file.name, path=str(file.parent)).load_config()
        except ConfigFileNotFound:
            continue
        except Exception as problem:  # noqa: BLE001 - a configuration file is anybody's Python
            raise ConfigError(f"{file} cannot be read: {type(problem).__name__}: {problem}") from None
        _at_home(found_here, file.parent)
        config.merge(found_here)
    return config


def _at_home(config: Config, folder: Path) -> None:
    """Paths of policies are relative to the folder of the file that names them."""

    def whole(spec: Any) -> Any:
        path, _, attribute = str(spec).rpartition(":")
        is_file = isinstance(spec, str) and path.endswith(".py")
        return f"{folder.resolve() / Path(path).expanduser()}:{attribute}" if is_file else spec

    own = config.get("RoostScheduler", {})
    if isinstance(own.get("policies"), dict):
        own["policies"] = {name: whole(spec) for name, spec in own["policies"].items()}
    if "default_policy" in own:
        own["default_policy"] = whole(own["default_policy"])


def _frozen(
    scheduler: RoostScheduler, local: RoostLocalBackend, ray: RoostRayBackend, dask: RoostDaskBackend
) -> Settings:
    def memory(value: Any) -> int | None:
        return None if value is None else parse_bytes(value)

    if not all(name.strip() for name in (*local.labels, *local.taints)):
        raise ConfigError(
            "a label or a taint of c.RoostLocalBackend has no name: give it one, or leave it out."
        )
    for name in scheduler.policies:
        if name in SHIPPED:
            raise ConfigError(
                f"policy {name!r} of c.RoostScheduler.policies has the name of a shipped one: give it another."
            )
    return Settings(
        **{
            f.name: getattr(scheduler, f.name)
            for f in fields(Settings)
            if f.name in scheduler.trait_names() and f.name not in ("allowed_users", "denied_users")
        },
        max_memory_bytes_per_kernel=memory(scheduler.max_memory_per_kernel),
        max_memory_bytes_per_user=memory(scheduler.max_memory_per_user),
        default_memory_bytes=memory(scheduler.default_memory) or 0,
        allowed_users=frozenset(scheduler.allowed_users),
        denied_users=frozenset(scheduler.denied_users),
        local=LocalSettings(
            cpus=local.cpus,
            memory_bytes=memory(local.memory),
            gpus=local.gpus,
            gpu_model=local.gpu_model,
            preload=tuple(local.preload),
            labels=dict(local.labels),
            taints=tuple(local.taints),
        ),
        ray=ManagedSettings(**_declared(ray, ManagedSettings)),
        dask=DaskSettings(**_declared(dask, DaskSettings)),
    )


def _declared(options: Configurable, settings: type[ManagedSettings]) -> dict[str, Any]:
    values = {f.name: getattr(options, f.name) for f in fields(settings)}
    return {**values, "preload": tuple(values["preload"])}


def _unknown(what: str, name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}."
    return f"there is no {what} named {name}: {guess}"
