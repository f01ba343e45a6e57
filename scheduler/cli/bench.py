"""`roost bench`: finds the benchmarks, which need the extra `bench`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import cast

from roost.scheduler.backends.spec import describe_extra
from roost.scheduler.errors import ConfigError

_FUNCTIONS = {
    "start": "start",
    "latency": "measure_latency",
    "density": "fill",
    "memory": "add_up",
    "churn": "run_churn",
    "queue": "share",
    "placement": "decide",
    "scale": "simulate",
    "compare": "compare",
}


def run(arguments: argparse.Namespace) -> int:
    """Run a subcommand of `roost bench`."""
    try:
        command = import_module("roost.bench.command")
    except ImportError as problem:
        missing = f"the package {problem.name} is missing: {describe_extra('bench')}"
        raise ConfigError(f"roost bench cannot run here, because {missing}.") from None
    function = getattr(command, _FUNCTIONS[arguments.command])
    return cast(Callable[[argparse.Namespace], int], function)(arguments)
