"""The commands of `roost` and their arguments."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import roost
from roost.scheduler.backends.ssh import SPEC as SSH

from .options import (
    add_request,
    add_scheduler,
    parse_amount,
    parse_count,
    parse_factor,
    parse_seconds,
    parse_share,
)

Action = Callable[[argparse.Namespace], int]
Subparsers = Any  # argparse's own type is private


class _Parser(argparse.ArgumentParser):
    """A parser whose subcommands refuse unknown options themselves, and so with their own usage."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse like argparse, but allow no unknown options."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = unknown[0].partition("=")[0]
            close = difflib.get_close_matches(option, self._option_string_actions, n=1, cutoff=0.8)
            guess = f" (did you mean {close[0]}?)" if close and option.startswith("--") else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{guess}")
        return found, unknown


def find_action(name: str) -> Action:
    """Import and return the function behind a command. `--help` imports none of them."""
    module, _, function = name.partition(":")
    return cast(Action, getattr(import_module(f"roost.scheduler.cli.{module}"), function))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. `action` in its result names the function of the chosen command."""
    parser = _Parser(
        prog="jupyter roost" if os.path.basename(sys.argv[0]).startswith("jupyter-") else "roost",
        description="Show where Jupyter kernels run and why, and manage them.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"roost {roost.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_cluster_commands(commands)
    _add_simulate(commands)
    _add_kernelspec(commands)
    _add_migrate(commands)
    _add_machine(commands)
    _add_ssh(commands)
    _add_run(commands)
    _add_bench(commands)
    doctor = _add_command(commands, "doctor", "doctor:diagnose", "find problems and their remedies")
    what = "repair disagreements between kernels, leases and processes, and show each step"
    doctor.add_argument("--fix", action="store_true", help=what)
    doctor.add_argument("--dry-run", action="store_true", help="show what --fix would do, and change nothing")
    add_scheduler(doctor)
    what = "show the versions of roost and of the packages it works with"
    _add_command(commands, "version", "doctor:print_versions", what)
    return parser


def _add_cluster_commands(commands: Subparsers) -> None:
    what = "list nodes with their promised and used resources"
    nodes = _add_command(commands, "nodes", "nodes:list_nodes", what)
    what = "show where a kernel would be placed, or how one was placed and started, and why"
    explain = _add_command(commands, "explain", "explain:explain", what)
    what = "use nodes saved with `roost nodes --json`; --policy may then also be FILE.py:NAME or MODULE:NAME"
    explain.add_argument("--snapshot", metavar="FILE", help=what)
    what = "explain how this kernel was placed and started, by its id or the beginning of it"
    explain.add_argument("kernel", metavar="KERNEL", nargs="?", help=what)
    what = "list all kernels, with the CPU and memory that they use"
    kernels = _add_command(commands, "kernels", "kernels:list_kernels", what)
    what = "list only queued and pending kernels, with the reason"
    kernels.add_argument("--pending", action="store_true", help=what)
    top = _add_command(commands, "top", "top:show_top", "watch what the kernels use, the busiest first")
    what = "show what the kernels of all users hold on this machine, the oldest first"
    top.add_argument("--all", action="store_true", help=what)
    what = "pause between two looks (2)"
    top.add_argument("--interval", metavar="SECONDS", type=parse_amount, default=2.0, help=what)
    what = "print the service's last events"
    events = _add_command(commands, "events", "events:show_events", what)
    events.add_argument("--follow", "-f", action="store_true", help="go on until interrupted (Ctrl-C)")
    events.add_argument(
        "--limit", metavar="N", type=parse_count, default=100, help="print at most this many (100)"
    )
    what = "print the log of a kernel (its stdout and stderr)"
    logs = _add_command(commands, "logs", "kernels:print_log", what)
    logs.add_argument("kernel", metavar="KERNEL", help="the kernel's id, or the beginning of it")
    logs.add_argument("--tail", metavar="SIZE", default="64KiB", help="print at most this much (64KiB)")
    what = "print what the cells of a kernel have put out, as far as its node has kept it"
    output = _add_command(commands, "output", "attach:print_output", what)
    what = "open a console on a kernel (needs the extra `console`)"
    attach = _add_command(commands, "attach", "attach:attach", what, has_json=False)
    for parser in (output, attach):
        parser.add_argument("kernel", metavar="KERNEL", help="the kernel's id, or the beginning of it")
    stop = _add_command(commands, "stop", "kernels:stop", "stop kernels, or remove them from the queue")
    stop.add_argument("kernels", metavar="KERNEL", nargs="*", help="a kernel's id, or the beginning of it")
    what = "stop all kernels of the Jupyter Server of this name"
    stop.add_argument("--server", metavar="NAME", default="", help=what)
    what = "wait this long before killing (5)"
    stop.add_argument("--grace", metavar="SECONDS", type=parse_amount, default=5.0, help=what)
    drain = _add_command(commands, "drain", "nodes:drain", "place no more kernels on a node")
    drain.add_argument("node", metavar="NODE", help="the node's id")
    drain.add_argument("--off", action="store_true", help="place kernels on the node again")
    what = "start the agents of all nodes before a kernel needs them"
    up = _add_command(commands, "up", "nodes:start_agents", what)
    what = "end the service and start the next one, which reads the settings again; kernels live on"
    restart = _add_command(commands, "restart-service", "services:restart", what)
    what = "with the environment, the Python and the options of this command, not with those of the service"
    restart.add_argument("--here", action="store_true", help=what)
    for parser in (nodes, explain, kernels, top, events, logs, output, attach, stop, drain, up, restart):
        add_scheduler(parser)
    add_request(explain)


def _add_simulate(commands: Subparsers) -> None:
    what = "run a trace of requests under several policies"
    simulate = _add_command(commands, "simulate", "simulate:simulate", what, has_json=False)
    what = "a CSV file in openb's form, or one of roost's decision logs"
    simulate.add_argument("trace", metavar="TRACE", nargs="?", help=what)
    cluster = simulate.add_argument_group("nodes")
    which = cluster.add_mutually_exclusive_group(required=True)
    which.add_argument("--nodes", metavar="FILE", help="read nodes from a CSV file in openb's form")
    which.add_argument("--snapshot", metavar="FILE", help="use nodes saved with `roost nodes --json`")
    which.add_argument("--live", action="store_true", help="use the scheduler's nodes as they are now")
    what = "add nodes: 4x96cpus,384GiB,8xA100, or 4xNODE for empty copies of a node"
    cluster.add_argument("--add", metavar="NODES", action="append", default=[], help=what)
    cluster.add_argument("--empty", action="store_true", help="ignore the kernels that run on the nodes")
    add_scheduler(simulate)
    how = simulate.add_argument_group("run")
    what = "compare this policy (NAME, FILE.py:NAME or MODULE:NAME); default: all shipped policies"
    how.add_argument("--policy", metavar="NAME", action="append", help=what)
    what = "requested multiple of the resources (1.3)"
    how.add_argument("--demand", metavar="RATIO", type=parse_amount, help=what)
    kinds = how.add_mutually_exclusive_group()
    kinds.add_argument("--departures", action="store_true", help="random arrivals that end after their time")
    kinds.add_argument("--recorded", action="store_true", help="let kernels arrive and end as recorded")
    how.add_argument("--load", metavar="RATIO", type=parse_amount, help="mean load, with --departures (1.05)")
    how.add_argument("--arrivals", metavar="N", type=int, help="with --departures: number (the trace's)")
    how.add_argument("--seeds", metavar="N", type=int, help="repeat with this many random orders (3)")
    simulate.add_argument("--json", metavar="FILE", help="write all results as JSON (- prints only them)")
    simulate.add_argument("--plot", metavar="FILE", help="draw a PNG, SVG or PDF file; needs matplotlib")


def _add_kernelspec(commands: Subparsers) -> None:
    what = "install, list and remove roost's kernelspecs"
    parent = commands.add_parser("kernelspec", help=what, description=f"{what.capitalize()}.")
    actions = parent.add_subparsers(title="actions", metavar="ACTION", required=True)
    what = "copy a kernelspec so that its kernels start through roost"
    install = _add_command(actions, "install", "jupyter:install", what)
    what = "the kernelspec to copy (python3)"
    install.add_argument("--from", dest="source", metavar="NAME", default="python3", help=what)
    install.add_argument("--name", metavar="NAME", help="name of the copy (roost-…)")
    install.add_argument("--display-name", metavar="TEXT", default="", help="name shown in the launcher")
    install.add_argument("--replace", action="store_true", help="replace a kernelspec of the same name")
    what = "path of the kernels' Python where they run, instead of the kernelspec's"
    install.add_argument("--python", metavar="PATH", default="", help=what)
    what = "where to test the Python: hosts, or all (the first host that answers)"
    install.add_argument("--check-on", metavar="HOST", action="append", default=[], help=what)
    what = "do not test the kernelspec's Python and policy, nor its kernels' settings on the cluster"
    install.add_argument("--no-check", action="store_true", help=what)
    add_scheduler(install)
    add_request(install)
    _add_folder(install)
    what = "list roost's kernelspecs, and test whether they can start kernels"
    _add_command(actions, "list", "jupyter:list_all", what)
    remove = _add_command(actions, "remove", "jupyter:remove", "remove kernelspecs of roost")
    remove.add_argument("names", metavar="NAME", nargs="+")


def _add_migrate(commands: Subparsers) -> None:
    what = "translate kernelspecs of Enterprise Gateway, Gateway Provisioners and Remote Provisioners into roost's"
    migrate = _add_command(commands, "migrate", "migrate:migrate", what)
    what = "a kernelspec's name, or the path of its folder"
    migrate.add_argument("names", metavar="KERNELSPEC", nargs="*", help=what)
    what = "all kernelspecs of the three systems that Jupyter finds, or that are in a folder of --from"
    migrate.add_argument("--all", action="store_true", help=what)
    what = "look for kernelspecs in this folder too, such as share/jupyter of the old server"
    migrate.add_argument("--from", dest="sources", metavar="FOLDER", action="append", default=[], help=what)
    what = "a file of the old server's settings: its configuration, its environment or its systemd unit"
    migrate.add_argument("--server", metavar="FILE", action="append", default=[], help=what)
    what = "keep the launchers, which then run behind a bridge on the kernel's node"
    migrate.add_argument("--keep-launcher", action="store_true", help=what)
    how = migrate.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="only judge, and write nothing")
    what = "show how each kernel.json changes, and write nothing"
    how.add_argument("--diff", action="store_true", help=what)
    what = "remove what migrations have written: for the named kernelspecs, or for all"
    how.add_argument("--undo", action="store_true", help=what)
    _add_folder(migrate, "the folder that Jupyter searches first")


def _add_folder(parser: argparse.ArgumentParser, otherwise: str = "") -> None:
    """Add the options that name the folder of a new kernelspec. `otherwise` is the default, or the user's folder."""
    group = parser.add_argument_group("folder", f"default: {otherwise}" if otherwise else None)
    where = group.add_mutually_exclusive_group()
    default = "" if otherwise else " (default)"
    where.add_argument("--user", action="store_true", help=f"your own Jupyter folder{default}")
    where.add_argument("--sys-prefix", action="store_true", help="this Python's environment")
    where.add_argument("--prefix", metavar="FOLDER", help="FOLDER/share/jupyter/kernels")


def _add_machine(commands: Subparsers) -> None:
    what = "let several users share this machine, and show their limits"
    parent = commands.add_parser("machine", help=what, description=f"{what.capitalize()}.")
    actions = parent.add_subparsers(title="actions", metavar="ACTION", required=True)
    what = "make the folder in which all users' agents divide this machine; for root, and may be repeated"
    install = _add_command(actions, "install", "machine:install", what)
    install.add_argument("--dry-run", action="store_true", help="show what would be written; for everybody")
    what = "show the totals, the reserve and the limits of this machine"
    check = _add_command(actions, "check", "machine:check", what)
    check.add_argument("--file", metavar="FILE", help="read this draft, not /etc/roost/machine.toml")
    check.add_argument("--user", metavar="NAME", default="", help="show the limits of this user (your own)")


def _add_ssh(commands: Subparsers) -> None:
    what = "examine hosts that you can log in to"
    parent = commands.add_parser(SSH.name, help=what, description=f"{what.capitalize()}.")
    actions = parent.add_subparsers(title="actions", metavar="ACTION", required=True)
    what = "show for each host what works and what lacks, and how long each step takes; ssh may ask you"
    check = _add_command(actions, "check", "ssh_check:check", what)
    what = "a host as `ssh HOST` reads it (all hosts of the backend ssh)"
    check.add_argument("hosts", metavar="HOST", nargs="*", help=what)
    what = "option of the backend ssh, such as hosts_file=/path"
    check.add_argument("--backend-option", metavar="KEY=VALUE", action="append", default=[], help=what)


def _add_run(commands: Subparsers) -> None:
    run = _add_command(commands, "run", "jupyter:run", "execute a notebook on a kernel that roost places")
    run.add_argument("notebook", metavar="NOTEBOOK")
    run.add_argument("--output", metavar="FILE", help="write the executed notebook here (NOTEBOOK.out.ipynb)")
    run.add_argument("--kernel", metavar="NAME", default="", help="kernelspec (the notebook's own)")
    what = "at most this long for each cell"
    run.add_argument("--timeout", metavar="SECONDS", type=parse_seconds, help=what)
    add_scheduler(run, default="")
    add_request(run)


def _add_bench(commands: Subparsers) -> None:
    what = "measure how fast kernels start and answer, and how many of them a node holds (needs the extra `bench`)"
    parent = commands.add_parser("bench", help=what, description=f"{what[0].upper()}{what[1:]}.")
    actions = parent.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    start = _add_benchmark(actions, "start", "the time from nothing to the first reply, by stage")
    start.add_argument(
        "--at-once", metavar="N", type=parse_count, default=5, help="and of N starts at once (5)"
    )
    _add_benchmark(actions, "latency", "the round trips of a running kernel, idle and under load")
    density = _add_benchmark(actions, "density", "how many kernels each node holds, and the memory of one")
    what = "stop at this many kernels (1000; with --quick 20)"
    density.add_argument("--kernels", metavar="N", type=parse_count, help=what)
    what = "stop when less than this share of a node's memory is free (0.1)"
    density.add_argument("--keep-free", metavar="SHARE", type=parse_share, default=0.1, help=what)
    what = "stop when a start or an answer takes longer (2)"
    density.add_argument("--latency", metavar="SECONDS", type=parse_seconds, default=2.0, help=what)
    what = "measure the memory again after these were imported: numpy,pandas"
    density.add_argument("--packages", metavar="NAMES", default="", help=what)
    memory = _add_benchmark(actions, "memory", "what all processes take that run for some users")
    memory.add_argument("--users", metavar="N", type=parse_count, default=1, help="number of users (1)")
    what = "kernels of each user; may be repeated (1, 3, 10)"
    memory.add_argument("--kernels", metavar="N", type=parse_count, action="append", default=[], help=what)
    what = "how long after the last start (600)"
    memory.add_argument("--rest", metavar="SECONDS", type=parse_seconds, default=600.0, help=what)
    churn = _add_benchmark(actions, "churn", "starts and stops for some time, and leaks")
    churn.add_argument(
        "--seconds", metavar="SECONDS", type=parse_seconds, default=60.0, help="for this many seconds (60)"
    )
    churn.add_argument("--at-once", metavar="N", type=parse_count, default=1, help="starts at once (1)")
    queue = _add_benchmark(actions, "queue", "how long the kernels of several users wait")
    queue.add_argument("--users", metavar="N", type=parse_count, default=8, help="number of users (8)")
    what = "mean time for which a user keeps a kernel (10)"
    queue.add_argument("--use", metavar="SECONDS", type=parse_seconds, default=10.0, help=what)
    what = "mean pause before a user's next kernel (10)"
    queue.add_argument("--pause", metavar="SECONDS", type=parse_seconds, default=10.0, help=what)
    queue.add_argument(
        "--seconds", metavar="SECONDS", type=parse_seconds, default=120.0, help="for this many seconds (120)"
    )
    queue.add_argument("--seed", metavar="N", type=int, help="repeat the random times of an earlier run")
    what = "let the kernels of this trace arrive: a decisions.jsonl, or a CSV file as for roost simulate"
    queue.add_argument("--trace", metavar="FILE", default="", help=what)
    what = "let them arrive this many times as fast (1)"
    queue.add_argument("--speed", metavar="FACTOR", type=parse_factor, default=1.0, help=what)
    what = "how long a decision takes on a busy cluster, which is drawn"
    placement = _add_command(actions, "placement", "bench:run", f"measure {what}", has_json=False)
    what = "nodes of the cluster; may be repeated (1000, 10000, 100000)"
    placement.add_argument("--nodes", metavar="N", type=parse_count, action="append", default=[], help=what)
    what = "the policy that decides; may be repeated, to compare policies (balanced)"
    placement.add_argument("--policy", metavar="NAME", action="append", default=[], help=what)
    placement.add_argument("--rounds", metavar="N", type=parse_count, help="repetitions of each (7)")
    _add_result(placement, "placement", "few decisions on small clusters, to try it out")
    what = "how many starts roost's service manages on a large cluster, which is simulated"
    scale = _add_command(actions, "scale", "bench:run", f"measure {what}", has_json=False)
    scale.add_argument(
        "--nodes", metavar="N", type=parse_count, help="nodes of the cluster (200; with --quick 20)"
    )
    what = "kernels to start (ten for each node)"
    scale.add_argument("--kernels", metavar="N", type=parse_count, default=0, help=what)
    scale.add_argument("--at-once", metavar="N", type=parse_count, default=16, help="starts at once (16)")
    _add_result(scale, "scale", "few nodes, to try it out")
    what = "show which figures of two results have changed by more than noise"
    compare = _add_command(actions, "compare", "bench:run", what, has_json=False)
    compare.set_defaults(command="compare")
    compare.add_argument("before", metavar="A.json")
    compare.add_argument("after", metavar="B.json")


def _add_benchmark(actions: Subparsers, name: str, what: str) -> argparse.ArgumentParser:
    parser = _add_command(actions, name, "bench:run", f"measure {what}", has_json=False)
    what = "compare with this: plain (default), none, a kernelspec's name, or roost:KEY=VALUE,... (may be repeated)"
    parser.add_argument("--baseline", metavar="WHAT", action="append", default=[], help=what)
    parser.add_argument("--rounds", metavar="N", type=parse_count, help="repetitions of each side")
    _add_result(parser, name, "few repetitions, to try it out")
    what = "start a cluster of three nodes on this machine for the run (ray, dask)"
    parser.add_argument("--embedded", action="store_true", help=what)
    add_scheduler(parser)
    add_request(parser)
    return parser


def _add_result(parser: argparse.ArgumentParser, name: str, quick: str) -> None:
    """Add the options of every benchmark. `quick` says what --quick does."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write all samples, the machine and the versions"
    )
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw a PNG, SVG or PDF file")
    parser.set_defaults(command=name, check=False)


def _add_command(
    commands: Subparsers, name: str, action: str, what: str, *, has_json: bool = True
) -> argparse.ArgumentParser:
    """Add a command and return its parser. `find_action` finds the command's function by `action`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}.", allow_abbrev=False
    )
    if has_json:
        parser.add_argument("--json", action="store_true", help="print one JSON document, for programs")
    parser.set_defaults(action=action)
    return parser
