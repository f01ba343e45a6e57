"""`Settings`: the section `c.RoostScheduler` of `jupyter_roost_config.py|json`.

The service loads it itself, from Jupyter's configuration path: a kernelspec cannot change it.
"""

from __future__ import annotations

from typing import Any

from traitlets import Bool, Dict, Float, Int, List, TraitError, Unicode, validate

from .section import Memory, Section, cap, seconds


class RoostScheduler(Section):
    """`c.RoostScheduler`: how much each user may have, and how long things are kept."""

    max_kernels_per_user = Int(
        None, allow_none=True, min=0, help="Kernels that one user may have (None: no cap)."
    ).tag(config=True)
    max_cpus_per_kernel = cap("CPUs that one kernel may ask for")
    max_gpus_per_kernel = cap("GPUs that one kernel may ask for")
    max_memory_per_kernel = Memory[int | None](
        None, allow_none=True, help="Memory that one kernel may ask for: '8GiB' or bytes (None: no cap)."
    ).tag(config=True)
    max_cpus_per_user = cap("CPUs that the kernels of one user may have together")
    max_gpus_per_user = cap("GPUs that the kernels of one user may have together")
    max_memory_per_user = Memory[int | None](
        None, allow_none=True, help="Memory that the kernels of one user may have together (None: no cap)."
    ).tag(config=True)
    allowed_users = List(
        Unicode(), help="Users who may start kernels; empty: everybody who is not denied."
    ).tag(config=True)
    denied_users = List(Unicode(), help="Users who may not start kernels.").tag(config=True)
    default_policy = Unicode("balanced", help="Placement policy of kernels that name none.").tag(config=True)
    policies: Dict[str, str] = Dict(
        key_trait=Unicode(),
        value_trait=Unicode(),
        help="More policies that kernels may name: name → 'module:Name' or 'path/to/file.py:Name'. The service loads "
        "them. A path is relative to the configuration file's folder.",
    ).tag(config=True)
    policy_timeout_s = Float(
        1.0, min=0.01, help="A policy that is not shipped and takes longer is left out of that decision."
    ).tag(config=True)
    allow_client_policies = Bool(
        True, help="Whether programs may send policies to the service, which runs them (`Client.add_policy`)."
    ).tag(config=True)
    default_cpus = Float(0.0, min=0.0, help="CPUs of kernels that ask for none.").tag(config=True)
    default_gpus = Float(0.0, min=0.0, help="GPUs of kernels that ask for none.").tag(config=True)
    default_memory = Memory[int](0, help="Memory of kernels that ask for none.").tag(config=True)
    owner_grace_s = seconds(
        10.0, "How long kernels live after the end of an application that cannot adopt them."
    )
    orphan_after_s = seconds(86_400.0, "How long a kernel lives if no application comes back for it.")
    restart_grace_s = seconds(10.0, "How long a kernel that died keeps its lease for a restart.")
    claim_grace_s = seconds(5.0, "How long a lease without a kernel waits until its start is repeated.")
    reserve_after_s = seconds(30.0, "After this time in the queue, a node is kept free for a kernel.")
    idle_exit_s = seconds(300.0, "The service exits after this time without clients and kernels.")

    @validate("policies")
    def _check_policies(self, proposal: Any) -> Any:
        from roost.placement.shipped_policies import SHIPPED  # late: imports numpy

        for name in proposal["value"]:
            if name in SHIPPED:
                raise TraitError(
                    f"policy {name!r} of c.RoostScheduler.policies has the name of a shipped one: give it another."
                )
        return proposal["value"]


Settings = RoostScheduler
