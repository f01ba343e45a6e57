"""A command for Kubernetes clusters: `PYTHONPATH=tests python -m kit.clusters.kubelets --help`."""

from __future__ import annotations

import argparse
import sys
import time

from . import MACHINES, leftovers, why_not
from .build import build, install
from .cluster import claim, clusters, end_keeper, order, start_keeper, write_kubeconfig
from .network import NUMBERS

ORDERS = ("kill", "start", "pause", "resume", "power_off", "power_on", "cut", "reconnect")


def main() -> int | str:
    parser = argparse.ArgumentParser(prog="kubelets", description="Kubernetes clusters on this machine")
    parser.add_argument(
        "--number", type=int, default=NUMBERS[0], help="its network is 10.<number> (%(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="install Debian's packages, and build the program and the images, once")
    commands.add_parser("up", help="start a cluster that lasts until `down`")
    commands.add_parser("down", help="end it")
    commands.add_parser(
        "leftovers", help="list what clusters have on this machine; exit with 1 if there is anything"
    )
    user = commands.add_parser("user", help="write a kubeconfig file for a user")
    user.add_argument("user")
    user.add_argument("groups", nargs="*")
    for name in ORDERS:
        each = commands.add_parser(name)
        each.add_argument("argument", help="a node (n1) or a part (n1/kubelet, apiserver)")
    chosen = parser.parse_args()
    folder = clusters() / str(chosen.number)
    began = time.monotonic()
    if chosen.command == "build":
        install()
        build()
    elif chosen.command == "up":
        if reason := why_not():
            return reason
        with claim(chosen.number) as (folder, lock):
            start_keeper(folder, lock, MACHINES, is_tied=False)
        print(f"up after {time.monotonic() - began:.1f} s; export KUBECONFIG={folder}/admin.kubeconfig")
    elif chosen.command == "down":
        end_keeper(int((folder / "pid").read_text()))
        print(f"down after {time.monotonic() - began:.1f} s")
    elif chosen.command == "leftovers":
        found = leftovers()
        print(*found, sep="\n")
        return int(bool(found))
    elif chosen.command == "user":
        print(write_kubeconfig(folder, chosen.user, chosen.groups))
    else:
        order(folder, chosen.command, chosen.argument)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, OSError) as error:
        sys.exit(str(error))
