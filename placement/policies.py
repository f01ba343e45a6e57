"""The shipped policies, and how a policy is found by name."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

from .pipeline import ROUND_ROBIN, Pipeline, Policy, emptiest_device
from .scorers import Available, FewKernels, FullestDevice, LowLoad, NotBusy, SpareGpus

ENTRY_POINTS = "roost.policies"

# Weights a decade apart make an order: a tenth of a resource's range outweighs all that comes after it.
DEFAULT = Pipeline(
    name="default",
    scorers=(
        (SpareGpus(), 10.0),
        (NotBusy(), 10.0),  # the least excess that counts, 0.1, weighs as much as all of the GPU share
        (Available("gpu"), 1.0),
        (Available("memory", real=True), 0.1),
        (Available("cpu", real=True), 0.01),
        (LowLoad(), 1.0),
        (
            FewKernels(best_effort_only=True),
            0.25,
        ),  # load follows a start late: each kernel counts as 1/4 CPU beside it
    ),
)
"""GPU share first, then memory, then CPU, by what is available; off busy devices, off GPU nodes if it can."""

PACK = Pipeline(
    name="pack",
    scorers=(
        (SpareGpus(), 10.0),
        (FullestDevice(), 10.0),
        (Available("gpu"), -1.0),
        (Available("memory"), -0.1),
        (Available("cpu"), -0.01),
    ),
)
"""The fullest node, and on it the fullest device: whole nodes and devices stay free. By promises alone."""

SPREAD = Pipeline(
    name="spread",
    scorers=(
        (Available("gpu"), 1.0),
        (Available("memory"), 0.1),
        (Available("cpu"), 0.01),
        (FewKernels(best_effort_only=True), 1.0),
    ),
    devices=emptiest_device,
)
"""The emptiest node, and on it the emptiest device. By promises alone; best effort by kernels per CPU."""

ROUND_ROBIN_POLICY = Pipeline(name="round_robin", scorers=ROUND_ROBIN)
"""Rotates over the nodes that fit, in proportion to their size. Needs no metrics and keeps no state."""

_SHIPPED: dict[str, Policy] = {p.name: p for p in (DEFAULT, PACK, SPREAD, ROUND_ROBIN_POLICY)}


def policy(name_or_object: str | Policy) -> Policy:
    """The policy of that name: shipped, an entry point of ``roost.policies``, or ``module:Name``.

    A policy object is given back as it is. What an entry point or ``module:Name`` names may be a policy, or a
    class without required arguments. Raises ``ValueError`` that lists the known names.
    """
    if not isinstance(name_or_object, str):
        return _checked(name_or_object, repr(name_or_object))
    if name_or_object in _SHIPPED:
        return _SHIPPED[name_or_object]
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    try:
        if name_or_object in installed:
            return _checked(installed[name_or_object].load(), name_or_object)
        if ":" in name_or_object:
            module, _, attribute = name_or_object.partition(":")
            return _checked(getattr(import_module(module), attribute), name_or_object)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"policy {name_or_object!r} cannot be loaded: {error}.") from error
    known = ", ".join([*_SHIPPED, *sorted(installed.keys() - _SHIPPED.keys())])
    raise ValueError(
        f"unknown policy {name_or_object!r}; known are {known}, or one that the operator's configuration names."
    )


def _checked(found: object, name: str) -> Policy:
    made = found() if isinstance(found, type) else found
    if not isinstance(made, Policy):
        raise ValueError(f"{name} is not a policy: it needs a name and place(request, snapshot, *, avoid).")
    return made
