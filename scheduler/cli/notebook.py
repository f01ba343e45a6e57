"""`roost run`: execute a notebook on a kernel that roost places."""

from __future__ import annotations

import argparse

from roost.provisioners.notebook_run import run_notebook

from .options import print_json, request_config, scheduler_options


def run(arguments: argparse.Namespace) -> int:
    """Execute a notebook; 1 if a cell failed."""
    config = request_config(arguments)
    options = scheduler_options(arguments)
    if arguments.backend:  # the kernelspec's options belong to another backend
        config = {"options": {}, **config, "backend": arguments.backend, "backend_options": options}
    elif options:
        config["backend_options"] = options
    outcome = run_notebook(
        arguments.notebook,
        output=arguments.output,
        kernel_name=arguments.kernel,
        config=config,
        cell_timeout_s=arguments.timeout,
    )
    if arguments.json:
        print_json(outcome)
    return 0 if outcome["error"] is None else 1
