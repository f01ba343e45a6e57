"""Functions that read the control groups of an agent, which runs in the same group as the test."""

from __future__ import annotations

from pathlib import Path

from kit.machine.daemons import agent_folder
from roost.launchers.agent.limits.cgroups import CgroupTree, NoCgroups
from roost.launchers.agent.limits.limits import name_group
from roost.launchers.daemon.daemon import name_owner


def why_not() -> str:
    """Return why agents can make no control groups here; empty if they can."""
    try:
        CgroupTree("roost-test")
    except NoCgroups as problem:
        return str(problem)
    return ""


def find_tree(runtime_dir: Path) -> CgroupTree:
    return CgroupTree(name_group(name_owner(agent_folder(runtime_dir))))


def lease_groups(runtime_dir: Path) -> set[str]:
    """Return the names of the control groups that the agent has made for leases."""
    return find_tree(runtime_dir).lease_names()


def has_groups(runtime_dir: Path) -> bool:
    """True if the agent's own control group has groups in it, in any hierarchy."""
    return bool(find_tree(runtime_dir).group.names())
