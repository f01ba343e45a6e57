"""Options that several subcommands share: their declaration and their meaning.

`main.py` imports this module for `--help`, so everything that costs time is imported inside the functions.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import roost
from roost.scheduler.backends.spec import DEFAULT_BACKEND

if TYPE_CHECKING:
    from roost.placement.request import Request
    from roost.scheduler.client.client import Client


def add_scheduler(parser: argparse.ArgumentParser, default: str = DEFAULT_BACKEND) -> None:
    """Add the options that name a scheduler; `connect_scheduler` reads them."""
    shown = default or "the kernelspec's"
    parser.add_argument("--backend", metavar="NAME", default=default, help=f"kind of cluster ({shown})")
    what = "option of that backend, such as address=host:6379"
    parser.add_argument("--backend-option", metavar="KEY=VALUE", action="append", default=[], help=what)


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add the options of a request; `request_config` reads them."""
    request = parser.add_argument_group("request")
    request.add_argument("--cpus", metavar="N", type=parse_amount, help="number of CPUs")
    request.add_argument("--memory", metavar="SIZE", help="memory, for example 8GiB")
    request.add_argument(
        "--gpus", metavar="N", type=parse_amount, help="a share of one GPU (0.25), or a whole number"
    )
    request.add_argument("--gpu-memory", metavar="SIZE", help="least memory of each GPU, for example 40GiB")
    for option, metavar, what in (
        ("--gpu-model", "MODEL", "accept this GPU model"),
        ("--label", "KEY=VALUE", "require nodes with this label"),
        ("--near", "KEY=VALUE", "prefer nodes with this label"),
        ("--resource", "NAME=AMOUNT", "a custom resource of the cluster, such as licence=1"),
        ("--tolerate", "TAINT", "also accept nodes with this taint"),
        ("--option", "KEY=VALUE", "option of the backend for this kernel"),
    ):
        request.add_argument(option, metavar=metavar, action="append", default=[], help=what)
    request.add_argument("--policy", metavar="NAME", default="", help="placement policy")


def parse_amount(text: str) -> float:
    """Return a number that is not negative; raises argparse's usage error."""
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible: give a number, 0 or more")
    return amount


def parse_seconds(text: str) -> float:
    """Return a time above 0; raises argparse's usage error."""
    if not (seconds := parse_amount(text)):
        raise argparse.ArgumentTypeError(f"{text!r} leaves no time: give seconds above 0")
    return seconds


def request_config(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the given request options under the keys of a kernelspec's config; raises `ConfigError`."""
    config = {
        "cpus": _whole(arguments.cpus),
        "memory": arguments.memory,
        "gpus": _whole(arguments.gpus),
        "gpu_models": arguments.gpu_model,
        "gpu_memory": arguments.gpu_memory,
        "labels": _parse_labels("--label", arguments.label),
        "near": _parse_labels("--near", arguments.near),
        "resources": _parse_resources(arguments.resource),
        "tolerates": arguments.tolerate,
        "policy": arguments.policy,
        "options": _parse_labels("--option", arguments.option, "name=value"),
    }
    return {key: value for key, value in config.items() if value not in (None, "", [], {})}


def build_request(config: dict[str, Any], backend: str) -> Request:
    """Return the request that `request_config` describes, for that backend; raises `ConfigError`."""
    from roost.placement.request import Request
    from roost.scheduler.backends.registry import get_spec
    from roost.scheduler.config.memory_size import parse_bytes

    try:
        return Request(
            cpus=config.get("cpus", 0.0),
            memory_bytes=parse_bytes(config.get("memory", 0)),
            gpus=config.get("gpus", 0.0),
            gpu_models=tuple(config.get("gpu_models", ())),
            gpu_memory_bytes=parse_bytes(config.get("gpu_memory", 0)),
            labels=config.get("labels", {}),
            near=config.get("near", {}),
            resources=config.get("resources", {}),
            tolerates=tuple(config.get("tolerates", ())),
            policy=config.get("policy", ""),
            options=get_spec(backend).read_options(config.get("options", {}), {}),
        )
    except ValueError as problem:
        raise roost.ConfigError(str(problem)) from None


def connect_scheduler(arguments: argparse.Namespace) -> Client:
    """Return the client of the scheduler that the options name. The first call starts the service if none runs."""
    return roost.connect(arguments.backend, **scheduler_options(arguments))


def scheduler_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the given `--backend-option` values; raises `ConfigError`."""
    options: dict[str, Any] = {}
    for option in arguments.backend_option:
        key, equals, text = option.partition("=")
        if not (key and equals):
            raise roost.ConfigError(f"--backend-option {option!r} must be KEY=VALUE, for example gpus=2.")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    return options


def print_json(document: dict[str, Any]) -> None:
    """Print the one document of `--json`."""
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def _parse_labels(option: str, given: Sequence[str], example: str = "zone=a") -> dict[str, str]:
    labels = {}
    for label in given:
        key, equals, value = label.partition("=")
        if not (key and equals):
            raise roost.ConfigError(f"{option} {label!r} must be KEY=VALUE, for example {example}.")
        labels[key] = value
    return labels


def _parse_resources(given: Sequence[str]) -> dict[str, float]:
    resources: dict[str, float] = {}
    for resource in given:
        name, _, text = resource.rpartition("=")
        try:
            amount = float(text)
        except ValueError:
            amount = 0.0
        if not (name and 0 < amount < float("inf")):
            raise roost.ConfigError(
                f"--resource {resource!r} must be NAME=AMOUNT with an amount above 0, for example licence=1."
            )
        resources[name] = int(amount) if amount.is_integer() else amount
    return resources


def _whole(amount: float | None) -> float | None:
    """Return 1 instead of 1.0: people read the kernelspec that this is written to."""
    return int(amount) if amount is not None and amount.is_integer() else amount
