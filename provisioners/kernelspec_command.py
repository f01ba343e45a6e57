"""What the subcommands of `roost` do that concern Jupyter: kernelspecs and notebooks."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from roost.scheduler.cli.actions import options_of, print_json, request_config
from roost.scheduler.cli.tables import asks, console, show, table
from roost.scheduler.client.interpreter_probe import ProbeResult
from roost.scheduler.errors import ConfigError

from .kernelspecs import RoostKernelspec, install, list_kernelspecs, problem_of, remove
from .request_options import read_wish
from .run_notebook import run


def kernelspec_install(arguments: argparse.Namespace) -> int:
    """Wrap a kernelspec and print what was found of its environment."""
    options = options_of(arguments)
    which = {"backend": arguments.backend, **({"backend_options": options} if options else {})}
    made, found = install(
        arguments.source,
        name=arguments.name or f"roost-{arguments.source}",
        config={**which, **request_config(arguments)},
        display_name=arguments.display_name,
        prefix=sys.prefix if arguments.sys_prefix else arguments.prefix,
        may_replace=arguments.replace,
        is_checked=not arguments.no_check,
    )
    if arguments.json:
        print_json({"kernelspec": asdict(made), "environment": asdict(found) if found else None})
        return 0
    print(f"{made.name} ({made.display_name})")
    for name, text in {"in": made.folder, **_told(made, found)}.items():
        print(f"  {name:11} {text}")
    return 0


def kernelspec_list(arguments: argparse.Namespace) -> int:
    """Print roost's kernelspecs, each with what it asks for and what is wrong with it."""
    rows = [(spec, problem_of(spec)) for spec in list_kernelspecs()]
    if arguments.json:
        print_json({"kernelspecs": [{**asdict(spec), "problem": problem} for spec, problem in rows]})
        return 0
    if not rows:
        print("No kernelspec starts through roost: `roost kernelspec install --from python3` makes one.")
        return 0
    made = table("NAME", "SHOWN AS", "BACKEND", "ASKS FOR", "STATE")
    for spec, problem in rows:
        try:
            wanted = "?" if spec.malformed else asks(read_wish(spec.config, {}).request)
        except ConfigError:
            wanted = "?"
        made.add_row(spec.name, spec.display_name, _cluster(spec), wanted, "broken" if problem else "ready")
    out = console()
    show(out, made)
    for spec, problem in rows:
        if problem:
            out.print(f"\n{spec.name}: {problem}")
    return 0


def kernelspec_remove(arguments: argparse.Namespace) -> int:
    """Remove roost's kernelspecs of these names."""
    removed = []
    for name in arguments.names:
        folder = remove(name)
        removed.append({"name": name, "folder": folder})
        if not arguments.json:
            print(f"Removed {folder}")
    if arguments.json:
        print_json({"removed": removed})
    return 0


def run_notebook(arguments: argparse.Namespace) -> int:
    """Execute a notebook; 1 where a cell failed."""
    asked = request_config(arguments)
    read_wish(asked, {})
    options = options_of(arguments)
    if arguments.backend:  # then the kernelspec's options are another cluster's
        asked |= {"backend": arguments.backend, "backend_options": options}
    elif options:
        asked["backend_options"] = options
    outcome = run(
        arguments.notebook,
        output=arguments.output,
        kernel_name=arguments.kernel,
        asked=asked,
        cell_timeout_s=arguments.timeout,
    )
    if arguments.json:
        print_json(outcome)
    return 0 if outcome["error"] is None else 1


def _cluster(spec: RoostKernelspec) -> str:
    options = spec.config.get("backend_options")
    address = options.get("address", "") if isinstance(options, dict) else ""
    return f"{spec.config.get('backend', 'local')} {address}".rstrip()


def _told(made: RoostKernelspec, found: ProbeResult | None) -> Mapping[str, Any]:
    """What the check found, for people."""
    if found is None:
        return {"checked": "no"}
    if not found.is_ipykernel:
        return {
            "command": found.executable,
            "start": f"from its command (language: {made.language or 'not said'})",
        }
    return {
        "command": found.executable,
        "kernel": f"ipykernel {found.ipykernel} on Python {found.python}",
        "start": "forked from a warm process" if found.can_fork else "from its command",
        "connection": "encrypted (CURVE)"
        if found.has_curve
        else "through sockets in a private folder (encryption needs ipykernel 7.3 or newer)",
    }
