"""The service on a large cluster.

100,000 kernels start on 10,000 simulated nodes. The messages of all agents share one connection. Claims: the service
takes ≤ 5 ms of processor time per start, and ≤ 1.5 GiB of memory. 99 % of the decisions take ≤ 2 ms. After kill -9, the
next service has read everything back in ≤ 30 s.

`simulated/scale.py` describes the figures. With at most 1,000 nodes, each agent has a connection of its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict

from claims import Report, parser
from page_tables import PageTable
from simulated import scale

from roost.bench.runs import Measurement, run
from roost.scheduler.errors import ConfigError

AT_MOST = {"CPU per start: service": 5.0, "decision p99": 2.0, "memory": 1536.0, "read back": 30_000.0}
TABLE = PageTable(
    name="scale",
    columns={"roost's service": "{}"},
    rows={
        "starts, 16 at the same time": "starts",
        "start → the agent has answered, p50": "start p50",
        "start → the agent has answered, p99": "start p99",
        "decision, p50": "decision p50",
        "decision, p99": "decision p99",
        "processor time of the service per start": "CPU per start: service",
        "processor time of all agents per start": "CPU per start: agents",
        "processor time of the client per start": "CPU per start: client",
        "processor time of the service while no kernel starts": "idle: service",
        "memory of the service with all kernels (PSS)": "memory",
        "the next service after kill -9 has read everything back": "read back",
    },
    corner="100,000 kernels on 10,000 simulated nodes",
    has_picture=False,
)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--nodes", type=int, help="nodes of the cluster (default 10000, quick 2000)")
    what = "kernels to start (default 100000, quick 2000, but at most 10 for each node)"
    options.add_argument("--kernels", type=int, help=what)
    arguments = options.parse_args()
    nodes, kernels = (2_000, 2_000) if arguments.quick else (10_000, 100_000)
    nodes = arguments.nodes or nodes
    size = scale.Size(nodes=nodes, kernels=arguments.kernels or min(kernels, 10 * nodes), at_once=16)
    try:
        scale.check(size)
    except ConfigError as problem:
        options.error(str(problem))
    report = Report("scale", **asdict(size))

    @contextlib.contextmanager
    def prepare() -> Iterator[Measurement]:
        with scale.prepare(report, size) as measurement:

            async def measure() -> None:
                await measurement()
                for figure, bound in AT_MOST.items():
                    if figure in report.samples:  # else the service did not come back, and the notes say so
                        report.claim(figure, at_most=bound)

            yield measure

    return run(arguments, report, prepare())


if __name__ == "__main__":
    sys.exit(main())
