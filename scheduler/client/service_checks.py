"""Checks whether a scheduler or its cluster would refuse a policy or a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import roost
from roost.launchers.daemon.daemon import read_announcement
from roost.placement.model import Request
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.errors import BackendUnavailable, ConfigError, RoostError

from .call import wait_for
from .service_folder import service_folder, with_address


def check_policy(policy: str, backend: str, options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if the backend's scheduler would refuse the policy. Shipped policies always pass."""
    from roost.placement.shipped_policies import SHIPPED  # here, because it imports numpy

    if not policy or policy in SHIPPED:
        return
    if problem := wait_for(roost.connect(backend, **options).check_policies([policy])).get(policy):
        raise ConfigError(problem)


def check_cluster(request: Request, backend: str, options: Mapping[str, Any]) -> str:
    """Raise `ConfigError` if the cluster could not run the request.

    Return a sentence for the user if the cluster does not answer or the backend lacks a package, else an empty text.
    """
    # Imported here, because Jupyter needs no settings of the service.
    from roost.scheduler.config.files import load_settings

    spec = get_spec(backend)
    try:
        spec.check_packages()
    except ConfigError as missing:
        return missing.user_message
    if not spec.check:
        return ""
    _, settings = load_settings(backend, with_address(backend, options))
    try:
        load_object(spec.check, f"the check of the backend {backend}")(settings, request)
    except BackendUnavailable as problem:
        return f"The cluster has not checked these kernels: {problem.user_message}"
    return ""


def find_refusal(request: Request, backend: str, options: Mapping[str, Any]) -> str:
    """Return why the backend's scheduler would never start the request; empty if it might, or does not answer."""
    if read_announcement(service_folder(backend, with_address(backend, options))) is None:
        return ""
    try:
        decision = wait_for(roost.connect(backend, **options).explain(request))
    except BackendUnavailable:
        return ""  # `roost doctor` reports it
    except RoostError as refusal:
        return refusal.user_message
    return f"{decision['reason']}." if decision["is_never"] else ""
