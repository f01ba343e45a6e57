"""`Settings`: the section `c.RoostScheduler` of `jupyter_roost_config.py|json`.

The service loads this section itself from Jupyter's configuration path, so a kernelspec cannot change it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from traitlets import Bool, Dict, Float, Int, List, TraitError, Unicode, validate

from roost.scheduler.errors import ConfigError

from .memory_size import check_kernel_memory
from .section import Memory, Section


class RoostScheduler(Section):
    """`c.RoostScheduler`: limits for users and kernels, policies, and times of grace. None means no limit."""

    max_kernels_per_user = Int(None, allow_none=True, min=0, help="Kernels that one user may have.")
    max_cpus_per_kernel = Float(None, allow_none=True, min=0.0, help="CPUs that one kernel may ask for.")
    max_gpus_per_kernel = Float(None, allow_none=True, min=0.0, help="GPUs that one kernel may ask for.")
    max_memory_per_kernel = Memory[int | None](None, allow_none=True, help="Memory for one kernel: '8GiB'.")
    max_cpus_per_user = Float(None, allow_none=True, min=0.0, help="CPUs of all kernels of one user.")
    max_gpus_per_user = Float(None, allow_none=True, min=0.0, help="GPUs of all kernels of one user.")
    max_memory_per_user = Memory[int | None](None, allow_none=True, help="Memory of all kernels of one user.")
    max_queued = Int(10_000, min=1, help="Starts that may wait at once.")
    max_queued_per_user = Int(1_000, min=1, help="Starts of one user that may wait at once.")
    max_launch_timeout_s = Float(
        None, allow_none=True, min=1.0, help="The longest time that a start may wait."
    )
    default_launch_timeout_s = Float(60.0, min=1.0, help="How long a start may take that names no time.")
    allowed_users = List(Unicode(), help="Users who may start kernels; empty: all who are not denied.")
    denied_users = List(Unicode(), help="Users who may not start kernels.")
    kernelspec_users: Dict[str, dict[str, list[str]]] = Dict(
        help="By kernelspec: {'allowed': [...]} replaces allowed_users, {'denied': [...]} adds to denied_users."
    )
    default_policy = Unicode("balanced", help="Placement policy of kernels that name none.")
    policies: Dict[str, str] = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="More policies: name → 'module:Name' or 'path.py:Name', relative to the configuration file's folder.",
    )
    policy_timeout_s = Float(1.0, min=0.01, help="How long a policy that is not shipped may take.")
    policy_memory = Memory[int](2 << 30, help="Memory that a policy which is not shipped may take.")
    allow_client_policies = Bool(True, help="Whether the service runs policies that programs send to it.")
    default_cpus = Float(0.0, min=0.0, help="CPUs of kernels that ask for none.")
    default_gpus = Float(0.0, min=0.0, help="GPUs of kernels that ask for none.")
    default_memory = Memory[int](0, help="Memory of kernels that ask for none.")
    owner_grace_s = Float(10.0, min=0.0, help="How long kernels outlive an owner that cannot adopt them.")
    orphan_after_s = Float(86_400.0, min=0.0, help="How long a kernel lives if no application adopts it.")
    orphan_idle_after_s = Float(3_600.0, min=0.0, help="The same for a kernel that is idle all that time.")
    orphan_idle_gpu_after_s = Float(900.0, min=0.0, help="The same for an idle kernel with a GPU.")
    idle_after_s = Float(
        None, allow_none=True, min=1.0, help="Kernels that are idle for this many seconds end."
    )
    idle_gpu_after_s = Float(None, allow_none=True, min=1.0, help="The same for a kernel with a GPU.")
    place_grace_s = Float(60.0, min=0.0, help="How long a queued start outlives its Jupyter Server.")
    restart_grace_s = Float(10.0, min=0.0, help="How long a kernel that died keeps its lease for a restart.")
    claim_grace_s = Float(5.0, min=0.0, help="How long a lease without a kernel waits for its start.")
    reserve_after_s = Float(30.0, min=0.0, help="After this time in the queue, a kernel gets a node hold.")
    journal_memory = Memory[int](16 << 20, help="Latest output of each kernel that its node keeps in memory.")
    metrics = Unicode("", help="Where to serve metrics for Prometheus: '127.0.0.1:9476' or 'unix:/path'.")
    metrics_by_user = Bool(False, help="Metrics count the kernels of each user apart.")
    idle_exit_s = Float(300.0, min=0.0, help="The service exits after this time without clients and kernels.")

    @validate("default_memory")
    def _check_memory(self, proposal: Any) -> Any:
        try:
            return check_kernel_memory("default_memory", proposal["value"])
        except ConfigError as problem:
            raise TraitError(problem.user_message) from None

    @validate("kernelspec_users")
    def _check_kernelspec_users(self, proposal: Any) -> Any:
        example = "{'spark': {'allowed': ['ada'], 'denied': ['eve']}}"
        found: dict[str, dict[str, list[str]]] = {}
        for name, users in proposal["value"].items():
            if not isinstance(name, str) or not is_user_rule(users):
                shown = f"{name!r:.60}: {users!r:.60}"
                raise TraitError(f"kernelspec_users: {shown} is not possible: write it as in {example}.")
            if name.lower() in found:
                raise TraitError(f"kernelspec_users: {name!r:.60} is there twice: Jupyter ignores case.")
            found[name.lower()] = {key: list(users[key]) for key in users}
        return found

    @validate("policies")
    def _check_policies(self, proposal: Any) -> Any:
        from roost.placement.shipped_policies import SHIPPED  # late: imports numpy

        for name in proposal["value"]:
            if name in SHIPPED:
                raise TraitError(f"policies: {name!r} is the name of a shipped policy: give yours another.")
        return proposal["value"]


def is_user_rule(users: Any) -> bool:
    """True for a mapping with a list of names of users as `allowed`, as `denied`, or as both."""
    if not isinstance(users, Mapping) or not users or users.keys() - {"allowed", "denied"}:
        return False
    return all(
        isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        for names in users.values()
    )


Settings = RoostScheduler
