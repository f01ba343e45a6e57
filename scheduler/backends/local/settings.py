"""The settings of the backend `local`."""

from __future__ import annotations

from typing import Any

from traitlets import Dict, Float, Int, List, TraitError, Unicode, validate

from roost.scheduler.config.section import Memory
from roost.scheduler.config.shared_sections import EnforcementSettings, ForkingSettings, PortSettings


class RoostLocalBackend(ForkingSettings, EnforcementSettings, PortSettings):
    """`c.RoostLocalBackend`: the resources of this machine. roost measures the ones that are not set."""

    cpus = Float(None, allow_none=True, min=0.0, help="CPUs to give out.")
    memory = Memory[int | None](None, allow_none=True, help="Memory to give out: '8GiB' or bytes.")
    gpus = Int(None, allow_none=True, min=0, max=1024, help="GPUs to give out.")
    gpu_model = Unicode("", help="Model of the declared GPUs.")
    labels = Dict(
        key_trait=Unicode(), value_trait=Unicode(), help="Labels that kernels can ask for: name → text."
    )
    taints = List(Unicode(), help="Only kernels that tolerate all these taints run on this machine.")

    @validate("labels", "taints")
    def _check_names(self, proposal: Any) -> Any:
        if not all(name.strip() for name in proposal["value"]):
            what = proposal["trait"].name
            raise TraitError(f"{what}: a {what.removesuffix('s')} has no name: give it one, or leave it out.")
        return proposal["value"]
