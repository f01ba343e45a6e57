"""The service on a large cluster: `roost bench scale` with claims.

100,000 kernels start on 10,000 simulated nodes. The messages of all agents share one connection. Claims: the service
takes ≤ 5 ms of processor time per start, and ≤ 1.5 GiB of memory. 99 % of the decisions take ≤ 2 ms. Another client's
call every 50 ms is always answered within 250 ms. After kill -9, the next service has read everything back in ≤ 30 s.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import asdict

from page_tables import PageTable

from roost.bench import scale
from roost.bench.report import Report, parser
from roost.bench.runs import Measurement, run

AT_MOST = {
    "CPU per start: service": 5.0,
    "decision p99": 2.0,
    "probe max while nodes join": 250.0,
    "probe max while kernels start": 250.0,
    "memory": 1536.0,
    "read back": 30_000.0,
}
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
        "a call every 50 ms while the nodes join, p99": "probe p99 while nodes join",
        "a call every 50 ms while the nodes join, the slowest": "probe max while nodes join",
        "a call every 50 ms while the kernels start, p99": "probe p99 while kernels start",
        "a call every 50 ms while the kernels start, the slowest": "probe max while kernels start",
        "memory of the service with all kernels (PSS)": "memory",
        "the next service after kill -9 has read everything back": "read back",
    },
    corner="100,000 kernels on 10,000 simulated nodes",
    has_picture=False,
)


def main() -> int:
    arguments = parser(__doc__).parse_args()
    nodes, kernels = (2_000, 2_000) if arguments.quick else (10_000, 100_000)
    size = scale.Size(nodes=nodes, kernels=kernels, at_once=16)
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
