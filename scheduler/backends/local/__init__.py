"""Kernels on this machine: one node. The ledger of its agent holds the leases.

    core ──> LocalBackend ── reserve, release ───────────> the agent of this user           backend
                │   ^                                          │
                │   └── reserved, released, status ────────────┘   keep the snapshot up to date
                └──> find_or_start_agent, if no agent is known     (roost.launchers.agent)

`settings` has the resources that this machine gives out. Of all
backends, only this one imports `roost.launchers.agent`.
"""

from __future__ import annotations

from roost.scheduler.backends.spec import DEFAULT_BACKEND, BackendSpec

SPEC = BackendSpec(
    name=DEFAULT_BACKEND,
    settings="roost.scheduler.backends.local.settings:RoostLocalBackend",
    create="roost.scheduler.backends.local.backend:create",
    runs_on_this_machine=True,
    runs_as_its_user=True,
    follows_visible_gpus=True,
)
