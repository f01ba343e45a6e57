"""A command for SSH hosts: `PYTHONPATH=tests python -m kit.clusters.ssh_hosts --help`."""

from __future__ import annotations

import argparse
import shlex
import sys
from contextlib import suppress

from .accounts import ACCOUNTS, PLAIN
from .hosts import SshHosts
from .requirements import install, why_not


def main() -> int | str | None:
    parser = argparse.ArgumentParser(prog="ssh_hosts", description="SSH hosts on this machine")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("install", help="install Debian's packages for all accounts, once")
    up = commands.add_parser("up", help="start hosts that last until Ctrl-C")
    up.add_argument("--hosts", type=int, default=3, help="how many (%(default)s)")
    up.add_argument("--all-accounts", action="store_true", help="the hard accounts too")
    chosen = parser.parse_args()
    if chosen.command == "install":
        install()
        return why_not()
    accounts = tuple(ACCOUNTS) if chosen.all_accounts else PLAIN
    if reason := why_not(chosen.hosts, accounts):
        return reason
    with SshHosts(chosen.hosts, accounts=accounts) as hosts, suppress(KeyboardInterrupt):
        for user in hosts.users:
            print(shlex.join([*hosts.ssh(user), hosts.names[0]]))
        print(f"The hosts are {', '.join(hosts.names)}. Ctrl-C ends them.", flush=True)
        sys.stdin.read()
    return None


if __name__ == "__main__":
    sys.exit(main())
