"""`roost bench`: imports the benchmarks only when one of them runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import cast

_FUNCTIONS = {
    "start": "start",
    "latency": "measure_latency",
    "density": "fill",
    "churn": "run_churn",
    "placement": "decide",
    "compare": "compare",
}


def run(arguments: argparse.Namespace) -> int:
    """Run a subcommand of `roost bench`."""
    command = import_module("roost.bench.command")
    function = getattr(command, _FUNCTIONS[arguments.command])
    return cast(Callable[[argparse.Namespace], int], function)(arguments)
