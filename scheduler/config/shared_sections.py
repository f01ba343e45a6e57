"""Sections that the settings of several backends share: how kernels are forked and limited, their ports,
and the nodes that the cluster could start."""

from __future__ import annotations

from itertools import chain
from typing import Any

from traitlets import Bool, Dict, Enum, Float, List, TraitError, Unicode, validate

from roost.launchers.protocol.agent_settings import Enforcement, Forking
from roost.scheduler.backends.node_types import make_node_types

from .section import Section

_LEAST_PORTS = 6
"""A range has at least the five ports of a kernel and one of its agent."""


def is_module_name(name: str) -> bool:
    """True for a name as in an import, such as `os.path`."""
    return all(part.isidentifier() for part in name.split("."))


class ForkingSettings(Section):
    """How kernels are forked on the nodes."""

    preload = List(
        Unicode(),
        help="Modules that are imported before kernels are forked. `jedi` also prepares the first completion.",
    )
    preload_by_python = Dict(
        value_trait=List(Unicode()),
        key_trait=Unicode(),
        help="Further modules for some Pythons: a path of an interpreter, or a pattern such as `/opt/ml/*` → modules.",
    )
    immortal_preloads = Bool(
        True,
        help="Python 3.12 to 3.14: count no references to preloaded objects, so that kernels share more memory.",
    )

    @validate("preload", "preload_by_python")
    def _check_modules(self, proposal: Any) -> Any:
        setting, given = proposal["trait"].name, proposal["value"]
        for name in given if setting == "preload" else chain.from_iterable(given.values()):
            if not is_module_name(name):
                raise TraitError(
                    f'{setting}: {name!r} is no name of a module: give a list such as ["numpy", "jedi"].'
                )
        return given

    def forking(self) -> Forking:
        """Return these settings for the agents."""
        return Forking(
            preload=tuple(self.preload),
            preload_by_python={python: tuple(names) for python, names in self.preload_by_python.items()},
            immortal_preloads=self.immortal_preloads,
        )


def parse_port_range(text: str) -> tuple[int, ...]:
    """Return the lowest and the highest port of `40000-40999`, or nothing for an empty text. Raises `ValueError`."""
    if not text.strip():
        return ()
    lowest, _, highest = (part.strip() for part in text.partition("-"))
    ports = (int(lowest), int(highest)) if lowest.isdecimal() and highest.isdecimal() else (0, 0)
    if not 1024 <= ports[0] <= ports[1] - _LEAST_PORTS + 1 <= 65_536 - _LEAST_PORTS:
        raise ValueError(
            f"{text!r:.40} is not possible: give the lowest and the highest of at least {_LEAST_PORTS} ports from 1024 "
            "to 65535, such as 40000-40999."
        )
    return ports


class PortSettings(Section):
    """The ports that kernels may have on their machines."""

    kernel_ports = Unicode(
        "",
        help="The ports of kernels and of roost's agents, lowest-highest, for a firewall; empty: any free ones.",
    )

    @validate("kernel_ports")
    def _check_ports(self, proposal: Any) -> Any:
        try:
            parse_port_range(proposal["value"])
        except ValueError as problem:
            raise TraitError(f"kernel_ports = {problem}") from None
        return proposal["value"]


class EnforcementSettings(Section):
    """How kernels are held to the memory and the CPUs that they asked for."""

    enforce: Enum[Any] = Enum(
        ("auto", "required", "never"),
        "auto",
        help="auto: by control groups, else memory alone. required: by control groups, else no start. never.",
    )
    cpu_ceiling = Float(
        0.0,
        help="A kernel gets at most this multiple of the CPUs that it asked for: 1 or more. 0: all that are idle.",
    )
    end_detached = Bool(True, help="Processes that have left a kernel's session end with its lease, too.")

    @validate("cpu_ceiling")
    def _check_ceiling(self, proposal: Any) -> Any:
        ceiling = proposal["value"]
        if ceiling != 0 and not ceiling >= 1:  # a kernel never gets less than it asked for
            raise TraitError(f"cpu_ceiling = {ceiling:g} is not possible: give 0, or a number, 1 or more.")
        return ceiling

    def enforcement(self) -> Enforcement:
        """Return these settings for the agents."""
        return Enforcement(enforce=self.enforce, cpu_ceiling=self.cpu_ceiling, end_detached=self.end_detached)


class NodeTypeSettings(Section):
    """The setting of a backend whose cluster can grow."""

    node_types = List(
        Dict(),
        help="All kinds of nodes that the cluster adds: name, cpus, memory, gpus, gpu_model, gpu_memory, resources, "
        "labels, taints, limit. A request that fits none of them is then refused at once. Empty: not known.",
    )

    @validate("node_types")
    def _check_node_types(self, proposal: Any) -> Any:
        try:
            make_node_types(proposal["value"])
        except ValueError as problem:
            raise TraitError(f"node_types: {problem}.") from None
        return proposal["value"]
