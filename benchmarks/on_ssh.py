"""Kernels on three SSH hosts, each with namespaces and an sshd of its own on this machine.

start, again, interrupt, restart, stop
                as `roost bench start` measures them (`bench/starts.py`). Three cases take turns: plain Jupyter on this
                machine, a kernel with a CPU on a host, and one with half a GPU there
first start     with half a GPU, on new hosts: without a service, without roost's code on the host, without an agent.
                Its stage `leased` is the session that brings the code and starts the agent
session         ssh HOST true, as people run it: the login alone

Claims (medians): start with a CPU or half a GPU ≤ 0.25 × plain; first start ≤ 2.5 s. Without sshd or root the script
prints a note and exits with 77.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claims import SKIPPED, Report, parser
from page_tables import LIFE, PLAIN_JUPYTER, PageTable

from roost.bench.runs import Measurement, read_rounds, run, warm_up
from roost.bench.sides import Side, world
from roost.bench.starts import STAGES, add_first, measure_lives
from roost.bench.world import elapsed_ms

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from kit.clusters.ssh.shared_cluster import RULES, cluster_settings
from kit.clusters.ssh_hosts import SshHosts, why_not

MOST_OF_PLAIN = 0.25
MOST_FIRST_MS = 2500.0
_ON_CPU, _ON_GPU = "with a CPU on a host", "with half a GPU on a host"
STARTS = PageTable(
    name="on_ssh",
    columns={PLAIN_JUPYTER: "{}/plain", _ON_CPU: "{}/roost-cpu", _ON_GPU: "{}/roost-gpu"},
    rows=LIFE,
    ratios={"CPU ÷ plain": (_ON_CPU, PLAIN_JUPYTER), "GPU ÷ plain": (_ON_GPU, PLAIN_JUPYTER)},
)
FIRST = PageTable(
    name="on_ssh-first",
    columns={"time": "{}"},
    rows={
        "the very first kernel, on a new host": "first start/roost-gpu",
        "of it, the session that brings roost's code and starts the agent": "first start, stage leased/roost-gpu",
        "of it, the kernel's own start": "first start, stage launched/roost-gpu",
        "a login alone, `ssh HOST true`": "session/login",
    },
)


def side(name: str, **request: float) -> Side:
    return Side(name=name, kernelspec=name, config={"backend": "ssh", **request})


@contextmanager
def hosts_of(folder: Path) -> Iterator[SshHosts]:
    """Start new hosts, which the private folders in `folder` name in their settings."""
    with SshHosts(len(RULES), rules=RULES) as hosts:
        config = folder / "jupyter_config_dir"
        config.mkdir(exist_ok=True)
        settings = {"RoostSshBackend": cluster_settings(hosts)}
        (config / "jupyter_roost_config.json").write_text(json.dumps(settings))
        os.environ["JUPYTER_CONFIG_DIR"] = str(config)  # the world restores it
        yield hosts


def time_login(hosts: SshHosts) -> float:
    began = time.perf_counter()
    subprocess.run([*hosts.ssh(), "n1", "true"], check=True, stdin=subprocess.DEVNULL, timeout=60)
    return elapsed_ms(began)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    arguments = options.parse_args()
    if reason := why_not(len(RULES)):
        print(reason, file=sys.stderr)
        return SKIPPED
    sides = [side("roost-cpu", cpus=1), side("roost-gpu", gpus=0.5), Side(name="plain", kernelspec="plain")]
    report = Report("on SSH hosts", rounds=read_rounds(arguments))

    async def measurement(folder: Path) -> None:
        for _ in range(1 if arguments.quick else 5):
            with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as name, hosts_of(folder) as hosts:
                for _ in range(3):
                    report.add("session/login", await asyncio.to_thread(time_login, hosts), "ms")
                await add_first(report, sides[1], Path(name) / "r")
        with hosts_of(folder):
            await warm_up(report, sides)
            await measure_lives(report, sides, rounds=read_rounds(arguments))
        for stage in STAGES:
            report.compare(stage, ["roost-gpu", "plain"])
        claim(report)

    @contextmanager
    def prepare() -> Iterator[Measurement]:
        with world(sides) as folder:
            yield lambda: measurement(folder)

    return run(arguments, report, prepare())


def claim(report: Report) -> None:
    for name in ("roost-cpu", "roost-gpu"):
        report.claim(f"start: {name} ÷ plain", at_most=MOST_OF_PLAIN)
    report.claim("first start/roost-gpu", at_most=MOST_FIRST_MS)


if __name__ == "__main__":
    sys.exit(main())
