"""A check of a policy's name before anything is written or started that would use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import roost
from roost.scheduler.errors import ConfigError

from .call import wait_for


def check_policy(policy: str, backend: str, options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a policy that this scheduler would refuse. Only a policy that is not shipped is sent."""
    from roost.placement.shipped_policies import SHIPPED  # here, because it imports numpy

    if not policy or policy in SHIPPED:
        return
    if problem := wait_for(roost.connect(backend, **options).check_policies([policy])).get(policy):
        raise ConfigError(problem)
