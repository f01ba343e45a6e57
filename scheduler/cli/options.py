"""Options that several subcommands share: their declaration and their meaning.

`main.py` imports this module for `--help`, so everything that costs time is imported inside the functions.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import roost
from roost.scheduler.backends.spec import DEFAULT_BACKEND

if TYPE_CHECKING:
    from roost.scheduler.client.advice import Advice
    from roost.scheduler.client.client import Client


BACKEND_VARIABLE = "ROOST_BACKEND"
"""The environment variable with the backend of commands that name none."""


def add_scheduler(parser: argparse.ArgumentParser, *, follows_service: bool = True) -> None:
    """Add the options that name a scheduler; `connect_scheduler` reads them.

    `follows_service`: without a name, the command asks the only service that runs.
    """
    otherwise = "else that of the only service that runs, " if follows_service else ""
    what = f"kind of cluster (${BACKEND_VARIABLE}, {otherwise}else {DEFAULT_BACKEND})"
    parser.add_argument("--backend", metavar="NAME", default="", help=what)
    parser.set_defaults(follows_service=follows_service)
    what = "option of that backend, such as address=host:6379"
    parser.add_argument("--backend-option", metavar="KEY=VALUE", action="append", default=[], help=what)


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add the options of a request; `request_config` reads them."""
    request = parser.add_argument_group("request")
    request.add_argument("--cpus", metavar="N", type=parse_cpus, help="number of CPUs: 2, 0.5 or 500m")
    request.add_argument("--memory", metavar="SIZE", help="memory, for example 8GiB")
    what = "a share of one GPU (0.25), or a whole number"
    request.add_argument("--gpus", metavar="N", type=parse_amount, help=what)
    request.add_argument("--gpu-memory", metavar="SIZE", help="least memory of each GPU, for example 40GiB")
    for option, name, metavar, what in (
        ("--gpu-model", "gpu_models", "MODEL", "accept this GPU model"),
        ("--label", "labels", "KEY=VALUE", "require nodes with this label"),
        ("--near", "near", "KEY=VALUE", "prefer nodes with this label"),
        ("--resource", "resources", "NAME=AMOUNT", "a custom resource of the cluster, such as licence=1"),
        ("--tolerate", "tolerates", "TAINT", "also accept nodes with this taint"),
        ("--option", "options", "KEY=VALUE", "option of the backend for this kernel"),
    ):
        request.add_argument(option, dest=name, metavar=metavar, action="append", default=[], help=what)
    what = "required: only where limits can be enforced; auto: wherever they can (the operator's)"
    request.add_argument("--enforce", choices=("auto", "required"), default="", help=what)
    request.add_argument("--policy", metavar="NAME", default="", help="placement policy")


def parse_amount(text: str) -> float:
    """Return a number that is not negative; raises argparse's usage error."""
    amount = _read_number(text)
    if not amount >= 0:
        raise _refuse(text, "a number, 0 or more")
    return amount


def parse_cpus(text: str) -> float:
    """Return a number of CPUs, also of thousandths such as `500m`; raises argparse's usage error."""
    amount = _read_number(text.removesuffix("m"))
    if not amount >= 0:
        raise _refuse(text, "CPUs such as 2, 0.5 or 500m")
    return amount / 1000 if text.endswith("m") else amount


def parse_seconds(text: str) -> float:
    """Return a time above 0; raises argparse's usage error."""
    return _parse_positive(text, "seconds above 0")


def parse_count(text: str) -> int:
    """Return a whole number above 0; raises argparse's usage error."""
    wanted = "a whole number, 1 or more"
    count = _parse_positive(text, wanted)
    if not isinstance(count, int):
        raise _refuse(text, wanted)
    return count


def parse_share(text: str) -> float:
    """Return a number that is at least 0 and less than 1; raises argparse's usage error."""
    share = _read_number(text)
    if not 0 <= share < 1:
        raise _refuse(text, "a share of at least 0 and below 1, such as 0.1")
    return share


def _parse_positive(text: str, wanted: str) -> float:
    number = _read_number(text)
    if not number > 0:
        raise _refuse(text, wanted)
    return number


def _read_number(text: str) -> float:
    """Return a number, without decimals if it is whole; NaN for any other text."""
    try:
        number = float(text)
    except ValueError:
        return math.nan
    if not math.isfinite(number):
        return math.nan
    return int(number) if number.is_integer() else number


def _refuse(text: str, wanted: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text!r} is not possible: give {wanted}")


def request_config(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the request options that were given, named as in a kernelspec's config; raises `ConfigError`."""
    from roost.provisioners.request_options import split_pairs

    resources = split_pairs("--resource", arguments.resources, "licence=1", str.rpartition)
    names = ("cpus", "memory", "gpus", "gpu_models", "gpu_memory", "tolerates", "enforce", "policy")
    config = {
        **{name: getattr(arguments, name) for name in names},
        "labels": split_pairs("--label", arguments.labels),
        "near": split_pairs("--near", arguments.near),
        "resources": {name: read_json(text) for name, text in resources.items()},
        "options": split_pairs("--option", arguments.options, "name=value"),
    }
    return {key: value for key, value in config.items() if value not in (None, "", [], {})}


def choose_backend(arguments: argparse.Namespace) -> None:
    """Fill in the backend of a command that has such an option, if its user has named none."""
    if getattr(arguments, "backend", DEFAULT_BACKEND):
        return
    arguments.backend = os.environ.get(BACKEND_VARIABLE, "").strip()
    if not arguments.backend and arguments.follows_service and not arguments.backend_option:
        from roost.scheduler.client.running_services import find_services

        services = find_services()
        if len(services) == 1:
            arguments.backend = services[0].backend
            arguments.backend_option = [f"address={each.address}" for each in services if each.is_named]
    arguments.backend = arguments.backend or DEFAULT_BACKEND


def connect_scheduler(arguments: argparse.Namespace) -> Client:
    """Return the client of the scheduler that the options name. The first call starts the service if none runs."""
    return roost.connect(arguments.backend, **scheduler_options(arguments))


def scheduler_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the given `--backend-option` values; raises `ConfigError`."""
    if not arguments.backend_option:
        return {}
    from roost.provisioners.request_options import split_pairs

    options = split_pairs("--backend-option", arguments.backend_option, "gpus=2")
    return {name: read_json(text) for name, text in options.items()}


def advise(arguments: argparse.Namespace) -> Advice:
    """Return the advice about the scheduler that the options name; about the default one if they name none."""
    from roost.scheduler.client.advice import Advice
    from roost.scheduler.errors import ConfigError

    try:
        options = scheduler_options(arguments) if hasattr(arguments, "backend_option") else {}
    except ConfigError:  # the command has failed because of it
        options = {}
    return Advice(getattr(arguments, "backend", "") or DEFAULT_BACKEND, options)


def print_answer(arguments: argparse.Namespace, document: dict[str, Any], show: Callable[[], object]) -> int:
    """Print `document` as JSON if `--json` is given; otherwise call `show`.

    Return 0, the exit code of success.
    """
    if arguments.json:
        print(json.dumps(document, indent=2, ensure_ascii=False, default=str))
    else:
        show()
    return 0


def read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
