"""The `roost` command (also `jupyter roost`): its options, and how it fails.

What each subcommand does is named as an entry point is, `module:function`, and imported when it is called: the
help costs nothing, and what concerns Jupyter (kernelspecs, notebooks) stays in `provisioners`. Tables go to stdout
for people; with `--json` stdout is one JSON document for programs. Exit codes: 0 done, 1 not done, 2 usage or
configuration, 130 interrupted.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import roost

Subparsers = Any  # argparse's own type is private

_SCHEDULER = "roost.scheduler.cli.actions"
_JUPYTER = "roost.provisioners.kernelspec_command"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code and raises nothing that a user can mend."""
    arguments = _parser().parse_args(argv)
    from roost.launchers.daemon.daemon import DaemonError
    from roost.scheduler.errors import ConfigError, RoostError

    module, _, function = arguments.action.partition(":")
    try:
        return int(getattr(import_module(module), function)(arguments))
    except (RoostError, DaemonError) as error:
        print(f"roost: {error}", file=sys.stderr)
        if log_tail := getattr(error, "fields", {}).get("log_tail"):
            print(str(log_tail).rstrip(), file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("roost: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `roost kernels | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jupyter roost" if os.path.basename(sys.argv[0]).startswith("jupyter-") else "roost",
        description="Where Jupyter kernels run, why, and what to do about it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"roost {roost.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_questions(commands)
    _add_simulate(commands)
    _add_kernelspec(commands)
    _add_run(commands)
    doctor = _subcommand(commands, "doctor", "what disagrees, what is missing, what to do", _SCHEDULER)
    doctor.set_defaults(checks=("roost.provisioners.kernelspecs:findings",))
    _add_scheduler(doctor)
    _subcommand(commands, "version", "versions of roost and of what it works with", _SCHEDULER)
    return parser


def _add_questions(commands: Subparsers) -> None:
    nodes = _subcommand(commands, "nodes", "machines, what is promised on them and what is used", _SCHEDULER)
    explain = _subcommand(
        commands, "explain", "where a kernel of these options would go, and why", _SCHEDULER
    )
    explain.add_argument(
        "--snapshot",
        metavar="FILE",
        help="on nodes that `roost nodes --json` has written; --policy may then also be FILE.py:NAME or MODULE:NAME",
    )
    kernels = _subcommand(commands, "kernels", "kernels that run, start or wait", _SCHEDULER)
    kernels.add_argument("--pending", action="store_true", help="only those that wait, and what for")
    logs = _subcommand(commands, "logs", "what a kernel wrote outside its notebook", _SCHEDULER)
    logs.add_argument("kernel", metavar="KERNEL", help="id, or the beginning of one")
    logs.add_argument("--tail", metavar="SIZE", default="64KiB", help="at most this much of its end (64KiB)")
    stop = _subcommand(commands, "stop", "end kernels, or take waiting ones out of the queue", _SCHEDULER)
    stop.add_argument("kernels", metavar="KERNEL", nargs="+", help="id, or the beginning of one")
    stop.add_argument("--grace", metavar="SECONDS", type=_amount, default=5.0, help="before it is killed (5)")
    drain = _subcommand(commands, "drain", "place no more kernels on a node; those there go on", _SCHEDULER)
    drain.add_argument("node", metavar="NODE")
    drain.add_argument("--off", action="store_true", help="place kernels on it again")
    up = _subcommand(commands, "up", "start what runs on the nodes before a kernel needs it", _SCHEDULER)
    for parser in (nodes, explain, kernels, logs, stop, drain, up):
        _add_scheduler(parser)
    _add_request(explain)


def _add_simulate(commands: Subparsers) -> None:
    what = "what policies would make of a trace of requests, on nodes there are or might be"
    simulate = commands.add_parser(
        "simulate", help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False
    )
    simulate.set_defaults(action="roost.scheduler.simulate.command:simulate")
    simulate.add_argument(
        "trace", metavar="TRACE", nargs="?", help="tasks as CSV (openb's form), or a decision log of roost's"
    )
    cluster = simulate.add_argument_group("on which nodes")
    which = cluster.add_mutually_exclusive_group(required=True)
    which.add_argument("--nodes", metavar="FILE", help="nodes as CSV (openb's form)")
    which.add_argument("--snapshot", metavar="FILE", help="nodes that `roost nodes --json` has written")
    which.add_argument("--live", action="store_true", help="those of the scheduler, now")
    cluster.add_argument(
        "--add",
        metavar="NODES",
        action="append",
        default=[],
        help="and more: 4x96cpus,384GiB,8xA100, or 4xNODE for empty ones like that node",
    )
    cluster.add_argument("--empty", action="store_true", help="as if nothing ran on them")
    _add_scheduler(simulate)
    how = simulate.add_argument_group("how the trace is replayed")
    how.add_argument(
        "--policy", metavar="NAME", action="append", help="also FILE.py:NAME, MODULE:NAME (all shipped)"
    )
    how.add_argument("--demand", metavar="RATIO", type=_amount, help="asked for, of what there is (1.3)")
    kinds = how.add_mutually_exclusive_group()
    kinds.add_argument(
        "--departures", action="store_true", help="tasks end after their time; Poisson arrivals"
    )
    kinds.add_argument("--recorded", action="store_true", help="tasks come and end when they did")
    how.add_argument("--load", metavar="RATIO", type=_amount, help="with --departures (1.05)")
    how.add_argument("--arrivals", metavar="N", type=int, help="with --departures (as many as the trace has)")
    how.add_argument("--seeds", metavar="N", type=int, help="repeated with so many random orders (3)")
    simulate.add_argument("--json", metavar="FILE", help="write all of it (- is stdout, without the table)")
    simulate.add_argument("--plot", metavar="FILE", help="draw it (PNG, SVG or PDF); needs matplotlib")


def _add_kernelspec(commands: Subparsers) -> None:
    what = "kernelspecs that start through roost"
    parent = commands.add_parser("kernelspec", help=what, description=f"{what.capitalize()}.")
    actions = parent.add_subparsers(title="actions", metavar="ACTION", required=True)
    install = _subcommand(actions, "install", "wrap an existing kernelspec", f"{_JUPYTER}:kernelspec_install")
    install.add_argument("--from", dest="source", metavar="NAME", default="python3", help="wrap it (python3)")
    install.add_argument("--name", metavar="NAME", help="of the new one (roost-…)")
    install.add_argument("--display-name", metavar="TEXT", default="", help="what people choose it by")
    install.add_argument("--replace", action="store_true", help="take the place of one of that name")
    install.add_argument(
        "--no-check", action="store_true", help="kernels run where this machine tells nothing of"
    )
    _add_scheduler(install)
    _add_request(install)
    where = install.add_argument_group("where it is put").add_mutually_exclusive_group()
    where.add_argument("--user", action="store_true", help="your own Jupyter folder (default)")
    where.add_argument("--sys-prefix", action="store_true", help="this Python's environment")
    where.add_argument("--prefix", metavar="FOLDER", help="FOLDER/share/jupyter/kernels")
    _subcommand(
        actions, "list", "those there are, and whether they can start kernels", f"{_JUPYTER}:kernelspec_list"
    )
    remove = _subcommand(actions, "remove", "remove kernelspecs of roost's", f"{_JUPYTER}:kernelspec_remove")
    remove.add_argument("names", metavar="NAME", nargs="+")


def _add_run(commands: Subparsers) -> None:
    run = _subcommand(commands, "run", "execute a notebook on a placed kernel", f"{_JUPYTER}:run_notebook")
    run.add_argument("notebook", metavar="NOTEBOOK")
    run.add_argument("--output", metavar="FILE", help="the executed notebook (NOTEBOOK.out.ipynb)")
    run.add_argument("--kernel", metavar="NAME", default="", help="kernelspec (the notebook's own)")
    run.add_argument("--timeout", metavar="SECONDS", type=_seconds, help="at most this long for each cell")
    _add_scheduler(run, default="")
    _add_request(run)


def _subcommand(commands: Subparsers, name: str, what: str, action: str) -> argparse.ArgumentParser:
    """One more subcommand, with `--json`; `action`, or the function of its name in that module, does it."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="one JSON document, for programs")
    parser.set_defaults(action=action if ":" in action else f"{action}:{name}")
    return parser


def _add_scheduler(parser: argparse.ArgumentParser, default: str = "local") -> None:
    """Which scheduler is asked; `actions.client_of` reads it."""
    shown = default or "the kernelspec's"
    parser.add_argument("--backend", metavar="NAME", default=default, help=f"the cluster ({shown})")
    parser.add_argument(
        "--backend-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="which of these clusters, such as address=host:6379, or which of its schedulers",
    )


def _add_request(parser: argparse.ArgumentParser) -> None:
    """What a kernel asks for; `actions.request_config` reads it."""
    asks = parser.add_argument_group("what the kernel asks for")
    asks.add_argument("--cpus", metavar="N", type=_amount, help="CPUs")
    asks.add_argument("--memory", metavar="SIZE", help="memory, for example 8GiB")
    asks.add_argument(
        "--gpus", metavar="N", type=_amount, help="a share of one GPU (0.25), or a whole number"
    )
    asks.add_argument("--gpu-model", metavar="MODEL", action="append", default=[], help="any of these models")
    asks.add_argument("--label", metavar="KEY=VALUE", action="append", default=[], help="only such nodes")
    asks.add_argument(
        "--near",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="rather such nodes, if they have room",
    )
    asks.add_argument(
        "--resource",
        metavar="NAME=AMOUNT",
        action="append",
        default=[],
        help="what else the cluster counts, such as licence=1",
    )
    asks.add_argument(
        "--tolerate", metavar="TAINT", action="append", default=[], help="also nodes kept for such kernels"
    )
    asks.add_argument("--policy", metavar="NAME", default="", help="how nodes are ranked")


def _amount(text: str) -> float:
    """A number that is not negative, or argparse's usage error."""
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible: give a number, 0 or more")
    return amount


def _seconds(text: str) -> float:
    """A time above 0, or argparse's usage error."""
    if not (seconds := _amount(text)):
        raise argparse.ArgumentTypeError(f"{text!r} leaves no time: give seconds above 0")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
