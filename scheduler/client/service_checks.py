"""Checks of policies, requests and kernelspecs: would the scheduler or its cluster refuse them?"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import roost
from roost.launchers.daemon.daemon import read_announcement
from roost.placement.model import Request
from roost.placement.model.format import format_age
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.errors import BackendUnavailable, ConfigError, LimitExceeded, NotAllowed, RoostError
from roost.scheduler.messages import Event, format_names

from .call import wait_for
from .running_services import find_services
from .service_folder import PYTHON_VARIABLE, service_folder, with_address

if TYPE_CHECKING:
    from .client import Client

_EVENTS = 1_000
"""At most this many of the service's latest events are searched for starts."""
_ASK_OPERATOR = "ask the operator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """The outlook of a kernelspec: can its next kernel start?

    `never`: no such kernel starts as things are set. `not now`: it would wait, be refused or fail now, and may start
    later. `not asked`: nobody knows without a start.
    """

    kind: Literal["starts", "never", "not now", "not asked"]
    reason: str = ""
    """Why: a clause without a full stop. Empty if the kernel starts."""
    do: str = ""
    """The advice; empty if only waiting helps, or if the request itself must change."""


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
    if spec.check:
        _, settings = load_settings(backend, with_address(backend, options))
        try:
            load_object(spec.check, f"the check of the backend {backend}")(settings, request)
        except BackendUnavailable as problem:
            return f"The cluster has not checked these kernels: {problem.user_message}"
    return ""


def check_nodes(request: Request, backend: str, options: Mapping[str, Any]) -> str:
    """Return a sentence for the user if a service runs that would never start the request, else an empty text."""
    outlook = find_outlook(request, backend, options, kernel_name="", changed_at=time.time(), is_tested=True)
    if outlook.kind != "never":
        return ""
    return f"No kernel of it starts: {outlook.reason}{f': {outlook.do}' if outlook.do else ''}."


def check_packages(backend: str, options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if a service that starts here would lack a package. A service that runs has all packages."""
    if not os.environ.get(PYTHON_VARIABLE) and not _has_service(backend, options):
        get_spec(backend).check_packages()


def is_same_service(one: tuple[str, Mapping[str, Any]], other: tuple[str, Mapping[str, Any]]) -> bool:
    """True if both pairs of a backend and options select the same scheduler service."""
    return one[0] == other[0] and service_folder(*one) == service_folder(*other)


def find_outlook(
    request: Request,
    backend: str,
    options: Mapping[str, Any],
    *,
    kernel_name: str,
    changed_at: float,
    is_tested: bool = False,
) -> Outlook:
    """Ask the backend's scheduler about the next kernel of a kernelspec. No service is started.

    `changed_at` is the time of the kernelspec's last change, in seconds since the epoch: earlier starts do not count.
    `is_tested`: its Python was tested on a machine of the backend, and kernels can start there.
    """
    client = roost.connect(backend, **options)
    if not _has_service(backend, options):
        if get_spec(backend).runs_on_this_machine and _asks_for_nothing(request):
            return Outlook(kind="starts")  # its Python was tested, and any machine does
        return _describe_missing(client, options)
    try:
        decision = wait_for(client.explain(request, kernel_name))
        latest = _find_latest_start(wait_for(client.events(_EVENTS)), kernel_name, changed_at)
    except BackendUnavailable as problem:
        return Outlook(kind="not asked", reason=problem.user_message.rstrip("."))
    except LimitExceeded as refusal:
        kind: Literal["never", "not now"] = "never" if refusal.fields.get("is_never") else "not now"
        reason, _, do = refusal.user_message.rstrip(".").rpartition(": ")
        return Outlook(kind=kind, reason=reason or do, do=do if reason else "")
    except NotAllowed as refusal:
        return Outlook(kind="never", reason=refusal.user_message.rstrip("."), do=_ASK_OPERATOR)
    except RoostError as refusal:
        return Outlook(kind="never", reason=refusal.user_message.rstrip("."), do=_advise_on_policy(refusal))
    if decision["is_never"]:
        now = "" if get_spec(backend).runs_on_this_machine else ", with the nodes that the cluster has now"
        if left := decision.get("left"):
            return Outlook(kind="not now", reason=f"{decision['reason']}{now}; {left}")
        do = ""
        if decision.get("is_policys_refusal"):
            setting = (
                "the kernelspec's option `policy`" if request.policy else "c.RoostScheduler.default_policy"
            )
            do = f"correct this policy, or name another one in {setting}"
        return Outlook(kind="never", reason=decision["reason"] + now, do=do)
    if latest is not None and latest.kind == "failed":
        age = format_age(max(0.0, time.time() - latest.at))
        return Outlook(
            kind="not now", reason=f"its latest start failed {age} ago: {latest.detail.rstrip('.')}"
        )
    if decision["placement"] is None:
        return Outlook(kind="not now", reason=decision.get("reason", ""), do=_describe_others(decision))
    if latest is not None or get_spec(backend).runs_on_this_machine:
        return Outlook(kind="starts")
    return _judge_agent(client, decision, is_tested=is_tested)


def _advise_on_policy(refusal: RoostError) -> str:
    """Return the advice about a policy that cannot be used; empty for another refusal.

    The kernelspec is not at fault, so its removal is no remedy.
    """
    if not refusal.fields.get("policy"):
        return ""
    other = "name another policy in kernel.json"
    setting = refusal.fields.get("setting")
    return f"correct {setting}, or the file that it names; or {other}" if setting else other


def _describe_missing(client: Client, options: Mapping[str, Any]) -> Outlook:
    """Return that no service runs for these options, with the clusters of the services that run, and what to do."""
    named = with_address(client.backend, options)
    wanted = f" with {' '.join(f'{name}={value}' for name, value in named.items())}" if named else ""
    others = sorted(
        {each.address for each in find_services() if each.backend == client.backend and each.address}
    )
    reason = f"no service of {client.backend}{wanted} runs"
    do = f"run {client.advice.write('doctor')}"
    if others:
        reason += f", only for {format_names(others)}"
        if "address" not in named:
            entry = json.dumps({"backend_options": {"address": others[0]}})[1:-1]
            do = f"if it is for that cluster, write {entry} into its kernel.json; else {do}"
    return Outlook(kind="not asked", reason=reason, do=do)


def _judge_agent(client: Client, decision: Mapping[str, Any], *, is_tested: bool) -> Outlook:
    """Return the outlook by the known state of the agent on the chosen node."""
    agent = decision.get("agent") or {}
    node_id = decision["placement"]["node_id"]
    if problem := agent.get("problem"):
        return Outlook(kind="not now", reason=problem, do=f"mend that, then run {client.advice.write('up')}")
    if is_tested:
        return Outlook(kind="starts")
    if agent.get("has_run") or get_spec(client.backend).has_agent_per_kernel:
        # The agent may run on another Python. The starts of an earlier service are not known.
        reason = "the service knows no start of such a kernel, so nobody has seen the Python there"
        return Outlook(kind="not asked", reason=reason, do="start one: what fails is then known")
    do = f"run {client.advice.write('up')}: it starts an agent on each node, and says what fails"
    return Outlook(kind="not asked", reason=f"no agent of roost runs on {node_id} yet", do=do)


def _describe_others(decision: Mapping[str, Any]) -> str:
    return str((decision.get("others") or {}).get("text", ""))


def _find_latest_start(events: list[Event], kernel_name: str, changed_at: float) -> Event | None:
    """Return the event of the latest start that has begun on a node, `running` or `failed`; None without one.

    A start that failed because it had waited too long says nothing about the next one.
    """
    for event in reversed(events):
        if event.at < changed_at:
            return None
        kernel = event.kernel
        is_same = kernel is not None and kernel.kernel_name == kernel_name and kernel.node_id != ""
        if is_same and event.kind in ("running", "failed"):
            return event
    return None


def _asks_for_nothing(request: Request) -> bool:
    return replace(request, environment="", owner="", near={}) == Request()


def _has_service(backend: str, options: Mapping[str, Any]) -> bool:
    return read_announcement(service_folder(backend, options)) is not None
