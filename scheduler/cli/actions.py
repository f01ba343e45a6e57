"""What the subcommands of `roost` do that concern the scheduler; each takes its arguments and returns the exit code."""

from __future__ import annotations

import argparse
import concurrent.futures
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, TypeVar

import roost
from roost.launchers.daemon.daemon import DaemonError, announced, runtime_dir
from roost.launchers.protocol.json_codec import encode
from roost.scheduler.client.client import Client
from roost.scheduler.config.memory_size import parse_bytes
from roost.scheduler.errors import BackendUnavailable, ConfigError, RoostError, UnknownKernel
from roost.scheduler.service.messages import Finding, Kernel, KernelRequest

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

ANSWER_S = 30.0
"""How long the scheduler may take to answer a question, its own start included."""
UP_S = 120.0
"""How long the agents of all nodes may take to start."""


class Result(Protocol[T_co]):
    """What the client's methods return, as far as the command uses it."""

    def result(self, timeout: float | None = None) -> T_co:
        """Wait for the answer."""


def request_config(arguments: argparse.Namespace) -> dict[str, Any]:
    """The request options that were given, under the keys of a kernelspec's config."""
    config = {
        "cpus": _whole(arguments.cpus),
        "memory": arguments.memory,
        "gpus": _whole(arguments.gpus),
        "gpu_models": arguments.gpu_model,
        "labels": _labels("--label", arguments.label),
        "near": _labels("--near", arguments.near),
        "resources": _resources(arguments.resource),
        "tolerates": arguments.tolerate,
        "policy": arguments.policy,
    }
    return {key: value for key, value in config.items() if value not in (None, "", [], {})}


def _labels(option: str, given: Sequence[str]) -> dict[str, str]:
    labels = {}
    for label in given:
        key, equals, value = label.partition("=")
        if not (key and equals):
            raise ConfigError(f"{option} {label!r} must be KEY=VALUE, for example zone=a.")
        labels[key] = value
    return labels


def _resources(given: Sequence[str]) -> dict[str, float]:
    resources = {}
    for resource in given:
        name, _, text = resource.rpartition("=")
        try:
            amount = float(text)
        except ValueError:
            amount = 0.0
        if not (name and 0 < amount < float("inf")):
            raise ConfigError(
                f"--resource {resource!r} must be NAME=AMOUNT, an amount above 0: for example licence=1."
            )
        resources[name] = int(amount) if amount.is_integer() else amount
    return resources


def _whole(amount: float | None) -> float | None:
    """1 rather than 1.0: what is written is read by people."""
    return int(amount) if amount is not None and amount.is_integer() else amount


def request_of(config: dict[str, Any]) -> KernelRequest:
    """The request that `request_config` describes; raises `ConfigError`."""
    return KernelRequest(
        cpus=config.get("cpus", 0.0),
        memory_bytes=parse_bytes(config.get("memory", 0)),
        gpus=config.get("gpus", 0.0),
        gpu_models=tuple(config.get("gpu_models", ())),
        labels=config.get("labels", {}),
        near=config.get("near", {}),
        resources=config.get("resources", {}),
        tolerates=tuple(config.get("tolerates", ())),
        policy=config.get("policy", ""),
    )


def client_of(arguments: argparse.Namespace) -> Client:
    """The scheduler that the options name, started by the first question if none serves."""
    return roost.connect(arguments.backend, **options_of(arguments))


def options_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The scheduler's options that were given; raises `ConfigError`."""
    options: dict[str, Any] = {}
    for option in arguments.backend_option:
        key, equals, text = option.partition("=")
        if not (key and equals):
            raise ConfigError(f"--backend-option {option!r} must be KEY=VALUE, for example gpus=2.")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options


def ask(call: Result[T], timeout_s: float = ANSWER_S) -> T:
    """The answer to a call of the client's, within a deadline."""
    try:
        return call.result(timeout_s)
    except (TimeoutError, concurrent.futures.TimeoutError):
        raise BackendUnavailable(
            f"The scheduler did not answer within {timeout_s:g} s: see `roost doctor`."
        ) from None


def check_policy(policy: str, backend: str, options: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a policy that this scheduler would refuse, `BackendUnavailable` if it cannot be asked.

    It is asked where the policy is not shipped.
    """
    from roost.placement.shipped_policies import SHIPPED  # late: no other action needs numpy

    if not policy or policy in SHIPPED:
        return
    if problem := ask(roost.connect(backend, **options).check_policies([policy])).get(policy):
        raise ConfigError(problem)


def print_json(document: dict[str, Any]) -> None:
    """The one document of `--json`."""
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def find_kernels(client: Client, prefixes: Sequence[str]) -> list[Kernel]:
    """The kernels whose ids begin so, each once; raises `UnknownKernel`, and `ConfigError` for several."""
    known = ask(client.kernels())
    found = {}
    for prefix in prefixes:
        matches = [kernel for kernel in known if kernel.id.startswith(prefix)] if prefix else []
        exact = [kernel for kernel in matches if kernel.id == prefix]
        if not matches:
            raise UnknownKernel(f"There is no kernel {prefix!r}: `roost kernels` lists them.", kernel=prefix)
        if len(matches) > 1 and not exact:
            ids = ", ".join(kernel.id for kernel in matches[:4])
            raise ConfigError(f"{len(matches)} kernels begin with {prefix!r}: {ids}. Give more of the id.")
        kernel = (exact or matches)[0]
        found[kernel.id] = kernel
    return list(found.values())


def kernel_json(kernel: Kernel) -> dict[str, Any]:
    """A kernel for programs: its values without the connection, which holds keys."""
    document: dict[str, Any] = encode(kernel)
    del document["connection"]
    return document


def nodes(arguments: argparse.Namespace) -> int:
    """Print the nodes."""
    client = client_of(arguments)
    nodes, service = ask(client.nodes()), ask(client.service())
    if arguments.json:
        print_json({"cluster": _cluster(service), "nodes": nodes})
    else:
        from .tables import show_nodes

        show_nodes(nodes, **_cluster(service))
    return 0


def _cluster(service: Mapping[str, Any]) -> dict[str, str]:
    return {"backend": str(service["backend"]), "address": str(service.get("address", ""))}


def explain(arguments: argparse.Namespace) -> int:
    """Print where a request would go, now or on a saved snapshot."""
    request = request_of(request_config(arguments))
    if arguments.snapshot:
        from roost.scheduler.config.settings import load
        from roost.scheduler.policies.offline import explain_saved

        decision = explain_saved(arguments.snapshot, request, load(arguments.backend, options_of(arguments)))
    else:
        decision = ask(client_of(arguments).explain(request))
    if arguments.json:
        print_json({"decision": decision})
    else:
        from .tables import show_decision

        show_decision(decision)
    return 0


def kernels(arguments: argparse.Namespace) -> int:
    """Print the kernels, or the queue."""
    kernels = ask(client_of(arguments).kernels())
    if arguments.pending:
        kernels = [kernel for kernel in kernels if kernel.state == "queued"]
    if arguments.json:
        print_json({"kernels": [kernel_json(kernel) for kernel in kernels]})
    else:
        from .tables import show_kernels, show_pending

        (show_pending if arguments.pending else show_kernels)(kernels)
    return 0


def logs(arguments: argparse.Namespace) -> int:
    """Print the end of a kernel's log."""
    tail_bytes = parse_bytes(arguments.tail)
    client = client_of(arguments)
    try:
        kernel_id = find_kernels(client, [arguments.kernel])[0].id
    except UnknownKernel:
        kernel_id = arguments.kernel  # it may have ended: the scheduler knows for a while
    text = ask(client.logs(kernel_id, tail_bytes=tail_bytes))
    if arguments.json:
        print_json({"kernel": kernel_id, "text": text})
    elif text:
        print(text, end="" if text.endswith("\n") else "\n")
    return 0


def stop(arguments: argparse.Namespace) -> int:
    """End kernels, all at once; one that has just ended by itself counts."""
    client = client_of(arguments)
    kernels = find_kernels(client, arguments.kernels)
    calls = [(kernel, client.stop(kernel.id, grace_s=arguments.grace)) for kernel in kernels]
    for kernel, call in calls:
        try:
            ask(call, arguments.grace + ANSWER_S)
        except UnknownKernel:  # it ended by itself meanwhile: what was wanted
            pass
        if not arguments.json:
            was = "taken out of the queue" if kernel.state == "queued" else "stopped"
            print(f"{kernel.id} {was}")
    if arguments.json:
        print_json({"stopped": [{"id": kernel.id, "was": kernel.state} for kernel in kernels]})
    return 0


def up(arguments: argparse.Namespace) -> int:
    """`roost up`: the agents of all nodes."""
    client = client_of(arguments)
    count = ask(client.up(), UP_S)
    if arguments.json:
        print_json({"nodes": count})
    else:
        print(f"roost's agents run on {count} node{'' if count == 1 else 's'} of {arguments.backend}.")
    return 0


def drain(arguments: argparse.Namespace) -> int:
    """Drain a node, or take it into use again."""
    ask(client_of(arguments).drain(arguments.node, on=not arguments.off))
    if arguments.json:
        print_json({"node": arguments.node, "is_draining": not arguments.off})
    elif arguments.off:
        print(f"{arguments.node} takes kernels again")
    else:
        print(f"{arguments.node} takes no more kernels; those on it go on")
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """Print the scheduler's findings and those of `arguments.checks`: functions, named `module:function`."""
    findings: list[Finding] = []
    for check in arguments.checks:
        module, _, name = check.partition(":")
        findings += getattr(import_module(module), name)()
    try:
        client = client_of(arguments)
        findings += ask(client.doctor())
        cluster = " at ".join(filter(None, _cluster(ask(client.service())).values()))
        findings.append({"level": "ok", "what": f"the cluster is {cluster}", "do": ""})
    except (RoostError, DaemonError) as error:
        do = "mend this first: the other checks need the scheduler"
        findings.append({"level": "error", "what": str(error), "do": do})
    if arguments.json:
        print_json({"findings": findings})
    else:
        from .tables import show_findings

        show_findings(findings)
    return 1 if any(finding["level"] == "error" for finding in findings) else 0


def _services() -> list[dict[str, Any]]:
    """What this user's scheduler services that live have said of themselves, each with its folder."""
    folders = sorted(runtime_dir().glob("scheduler-*"))
    return [
        {
            "folder": folder.name,
            **{name: said.get(name, "") for name in ("version", "pid", "backend", "address")},
        }
        for folder in folders
        if (said := announced(folder)) is not None
    ]


def version(arguments: argparse.Namespace) -> int:
    """Print versions, an empty one is not installed; and the scheduler services that run, with their clusters."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    versions = {"roost": roost.__version__, "python": platform.python_version()}
    for package in ("jupyter_client", "ipykernel", "pyzmq", "nbclient"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = ""
    services = _services()
    if arguments.json:
        print_json({**versions, "schedulers": services})
        return 0
    for name, installed in versions.items():
        print(f"{name:15} {installed or 'not installed'}")
    for service in services:
        where = " at ".join(filter(None, _cluster(service).values()))
        print(
            f"{'scheduler':15} {service['version']} for {where} (pid {service['pid']}, {service['folder']})"
        )
    return 0
