"""A command that starts YARN clusters: `PYTHONPATH=tests python -m kit.clusters.hadoop_nodes --help`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

from . import MACHINES, PARTITION, HadoopNodes, Machine, why_not
from .build import build, install
from .cluster import start_daemon

_SIGNALS = {"kill": signal.SIGKILL, "pause": signal.SIGSTOP, "resume": signal.SIGCONT}


def main() -> int | str:
    parser = argparse.ArgumentParser(prog="hadoop_nodes", description="YARN clusters on this machine")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="install Debian's packages, and download Hadoop, once")
    commands.add_parser("why-not", help="print why no cluster can start here, and exit with 1 then")
    up = commands.add_parser("up", help="start a cluster that lasts until SIGINT or SIGTERM")
    up.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="settings of Hadoop")
    up.add_argument("--standby", action="store_true", help="with a second ResourceManager")
    up.add_argument(
        "--partition", action="store_true", help=f"with a fourth node, in the partition {PARTITION}"
    )
    up.add_argument("--link", type=Path, help="a symbolic link to make to the cluster's folder")
    for name in (*_SIGNALS, "start"):
        order = commands.add_parser(name, help=f"{name} a daemon")
        order.add_argument("folder", type=Path)
        order.add_argument("daemon", help="rm1, nm1, nm2, ...")
    chosen = parser.parse_args()
    if chosen.command == "build":
        install()
        build()
    elif chosen.command == "why-not":
        return why_not() or 0
    elif chosen.command == "up":
        return why_not() or _stay_up(chosen)
    elif chosen.command == "start":
        start_daemon(chosen.folder.resolve(), chosen.daemon, {})
    else:
        os.kill(int((chosen.folder / f"{chosen.daemon}.pid").read_text()), _SIGNALS[chosen.command])
    return 0


def _stay_up(chosen: argparse.Namespace) -> int:
    changes = dict(each.split("=", 1) for each in chosen.settings)
    machines = [*MACHINES, *([Machine(label=PARTITION)] if chosen.partition else [])]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    began = time.monotonic()
    with HadoopNodes(*machines, settings=changes, has_standby=chosen.standby) as cluster:
        print(f"up after {time.monotonic() - began:.1f} s in {cluster.folder}")
        print(f"ResourceManagers: {', '.join(map(cluster.address_of, cluster.resource_managers))}")
        print(f"nodes: {', '.join(map(cluster.address_of, cluster.machines))}")
        print(f"export HADOOP_CONF_DIR={cluster.configuration}", flush=True)
        if chosen.link:
            chosen.link.unlink(missing_ok=True)
            chosen.link.symlink_to(cluster.folder)
        signal.pause()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (RuntimeError, OSError) as error:
        sys.exit(str(error))
