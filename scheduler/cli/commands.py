"""The commands of `roost` and their arguments."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import roost

from .options import (
    add_request,
    add_scheduler,
    parse_amount,
    parse_count,
    parse_seconds,
    parse_share,
)

Action = Callable[[argparse.Namespace], int]
Subparsers = Any  # argparse's own type is private
_NAME_WIDTH = 17
_HELP_WIDTH = 76
"""The width of the lines in a group of commands. argparse indents them by two."""
_GROUPS = {
    "kernels": ("kernels", "top", "explain", "logs", "events", "stop"),
    "many people": ("gateway",),
    "the cluster": ("nodes", "up", "down", "drain", "restart-service", "machine"),
    "kernelspecs": ("kernelspec", "migrate"),
    "checks": ("doctor", "bench"),
}
"""The commands in the order of the help."""


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


class _GroupedCommands:
    """The commands of a parser. The help lists them in groups; argparse itself has one list for all."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        what = "one of these; `COMMAND --help` says more"
        self._commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, help=what)
        self._what: dict[str, str] = {}

    def add_parser(self, name: str, **options: Any) -> argparse.ArgumentParser:
        """Add a command. The options are those of argparse."""
        self._what[name] = options.pop("help")
        return self._commands.add_parser(name, **options)

    def show(self, groups: Mapping[str, Sequence[str]]) -> None:
        """Let the help show these groups of commands."""
        for title, names in groups.items():
            lines = (
                textwrap.fill(
                    f"{name:{_NAME_WIDTH}}{self._what[name]}",
                    _HELP_WIDTH,
                    subsequent_indent=" " * _NAME_WIDTH,
                    break_on_hyphens=False,
                )
                for name in names
            )
            self._parser.add_argument_group(title, "\n".join(lines))


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
        formatter_class=argparse.RawDescriptionHelpFormatter,  # the groups have line breaks of their own
    )
    parser.add_argument("--version", action="version", version=f"roost {roost.__version__}")
    commands = _GroupedCommands(parser)
    _add_cluster_commands(commands)
    _add_kernelspec(commands)
    _add_migrate(commands)
    _add_machine(commands)
    _add_gateway(commands)
    _add_bench(commands)
    doctor = _add_command(commands, "doctor", "doctor:diagnose", "find problems and their remedies")
    what = "repair disagreements between kernels, leases and processes, and show each step"
    doctor.add_argument("--fix", action="store_true", help=what)
    doctor.add_argument("--dry-run", action="store_true", help="show what --fix would do, and change nothing")
    add_scheduler(doctor)
    commands.show(_GROUPS)
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
    stop = _add_command(commands, "stop", "kernels:stop", "stop kernels, or remove them from the queue")
    stop.add_argument("kernels", metavar="KERNEL", nargs="*", help="a kernel's id, or the beginning of it")
    what = "stop all kernels of the Jupyter Server of this name"
    stop.add_argument("--server", metavar="NAME", default="", help=what)
    what = "stop all kernels of this user of the gateway that runs"
    stop.add_argument("--user", metavar="NAME", default="", help=what)
    what = "wait this long before killing (5)"
    stop.add_argument("--grace", metavar="SECONDS", type=parse_amount, default=5.0, help=what)
    drain = _add_command(commands, "drain", "nodes:drain", "place no more kernels on a node")
    drain.add_argument("node", metavar="NODE", help="the node's id")
    drain.add_argument("--off", action="store_true", help="place kernels on the node again")
    what = "start the agents of all nodes before a kernel needs them"
    up = _add_command(commands, "up", "nodes:start_agents", what)
    what = "end the service and start the next one, which reads the settings again; kernels live on"
    restart = _add_command(commands, "restart-service", "services:restart", what)
    what = "end all services and agents of this user on this machine, if there are no kernels"
    down = _add_command(commands, "down", "services:end_all", what)
    down.add_argument("--kernels", action="store_true", help="end the kernels, too")
    what = "wait this long before killing a kernel (5)"
    down.add_argument("--grace", metavar="SECONDS", type=parse_amount, default=5.0, help=what)
    for parser in (nodes, explain, kernels, top, events, logs, stop, drain, up, restart):
        add_scheduler(parser)
    add_request(explain)


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
    what = "do not test the kernelspec's Python, nor its kernels' settings on the cluster"
    install.add_argument("--no-check", action="store_true", help=what)
    add_scheduler(install, follows_service=False)
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
    what = "let several users share this machine"
    parent = commands.add_parser("machine", help=what, description=f"{what.capitalize()}.")
    actions = parent.add_subparsers(title="actions", metavar="ACTION", required=True)
    what = "make the folder in which all users' agents divide this machine; for root, and may be repeated"
    install = _add_command(actions, "install", "machine:install", what)
    install.add_argument("--dry-run", action="store_true", help="show what would be written; for everybody")


def _add_gateway(commands: Subparsers) -> None:
    what = "run a server that starts kernels for many people, and manage their tokens"
    parent = commands.add_parser(
        "gateway", help=what, description=f"{what.capitalize()}.", allow_abbrev=False
    )
    what = "the configuration (the first roost_gateway_config.py on Jupyter's path)"
    parent.add_argument("--config", metavar="FILE", default="", help=what)
    parent.set_defaults(action="gateway:serve")
    actions = parent.add_subparsers(title="actions", metavar="ACTION")
    _add_command(actions, "kernels", "gateway:list_all", "list the kernels of all people")
    what = "print the line for sudoers by which kernels run as the people who ask"
    sudoers = _add_command(actions, "sudoers", "gateway:print_rule", what)
    what = "the group of these people (notebooks)"
    sudoers.add_argument("--group", metavar="NAME", default="notebooks", help=what)
    what = "manage the tokens of people"
    token = actions.add_parser("token", help=what, description=f"{what.capitalize()}.")
    tokens = token.add_subparsers(title="actions", metavar="ACTION", required=True)
    add = _add_command(tokens, "add", "gateway:add_token", "make a token and show it, once")
    add.add_argument("user", metavar="NAME", help="whose token it is")
    what = "how long it is valid (90)"
    add.add_argument("--days", metavar="N", type=parse_seconds, default=90.0, help=what)
    _add_command(tokens, "list", "gateway:list_tokens", "list tokens, without their texts")
    remove = _add_command(tokens, "remove", "gateway:remove_tokens", "remove a token, or all of a person")
    remove.add_argument("name", metavar="ID|NAME", help="the token's id, or whose tokens")


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
    churn = _add_benchmark(actions, "churn", "starts and stops for some time, and leaks")
    churn.add_argument(
        "--seconds", metavar="SECONDS", type=parse_seconds, default=60.0, help="for this many seconds (60)"
    )
    churn.add_argument("--at-once", metavar="N", type=parse_count, default=1, help="starts at once (1)")
    what = "how long a decision takes on busy clusters, or how policies fill a cluster with a trace"
    placement = _add_command(actions, "placement", "bench:run", f"measure {what}", has_json=False)
    what = "compare policies on these requests: a list of tasks (FILE.csv), or the log of a service"
    placement.add_argument("trace", metavar="TRACE", nargs="?", help=what)
    what = "compare policies on the requests in the log of this scheduler"
    placement.add_argument("--live", action="store_true", help=what)
    what = "nodes for a trace: a list (FILE.csv), or saved with `roost nodes --json`; may be repeated (the scheduler's)"
    placement.add_argument("--cluster", metavar="FILE", action="append", default=[], help=what)
    add_scheduler(placement, follows_service=False)
    what = "nodes of a cluster that is drawn; may be repeated (1000, 10000, 100000)"
    placement.add_argument("--nodes", metavar="N", type=parse_count, action="append", default=[], help=what)
    what = "the policy that decides (NAME, FILE.py:NAME or MODULE:NAME); may be repeated (balanced; on a trace all)"
    placement.add_argument("--policy", metavar="NAME", action="append", default=[], help=what)
    placement.add_argument(
        "--rounds", metavar="N", type=parse_count, help="repetitions of each (7; on a trace 3)"
    )
    _add_result(placement, "placement", "few decisions on small clusters, to try it out")
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
    add_scheduler(parser, follows_service=False)
    add_request(parser)
    return parser


def _add_result(parser: argparse.ArgumentParser, name: str, quick: str) -> None:
    """Add the options of every benchmark. `quick` says what --quick does."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write all samples, the machine and the versions"
    )
    parser.set_defaults(command=name)


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
