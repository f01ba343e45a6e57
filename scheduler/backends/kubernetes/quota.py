"""The API server's answer to a pod that exceeds a ResourceQuota."""

from __future__ import annotations

import re

from .quantity import parse_quantity

_PARTS = re.compile(
    r"exceeded quota: (?P<name>\S+), requested: (?P<requested>\S+), used: (?P<used>\S+), limited: (?P<limited>\S+)"
)


def describe_quota(message: str, namespace: str) -> tuple[str, bool]:
    """Return a clause about the exceeded quota, and whether the request exceeds the whole quota.

    >>> describe_quota('pods "k" is forbidden: exceeded quota: team, requested: requests.cpu=3, used: requests.cpu=2, '
    ...                'limited: requests.cpu=4', "lab")
    ('the quota team of the namespace lab is used up: requests.cpu 2 of 4 used, 3 requested', False)
    """
    found = _PARTS.search(message)
    if found is None:
        return f"the quota of the namespace {namespace} is used up", False
    requested, used, limited = (_read(found[part]) for part in ("requested", "used", "limited"))
    amounts = [
        f"{name} {used.get(name, '0')} of {limited[name]} used, {amount} requested"
        for name, amount in requested.items()
        if name in limited
    ]
    is_final = any(
        parse_quantity(amount) > parse_quantity(limited[name])
        for name, amount in requested.items()
        if name in limited
    )
    verb = "is smaller than the request" if is_final else "is used up"
    return f"the quota {found['name']} of the namespace {namespace} {verb}: {', '.join(amounts)}", is_final


def _read(text: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in text.split(",") if "=" in part)
