"""Kernel starts on this machine: `roost bench start` against plain Jupyter, with claims.

`bench/starts.py` describes the figures. Claims, of medians, roost ÷ plain: start ≤ 0.14; a start at once after another
one ≤ 0.17; restart ≤ 0.16; stop ≤ 1; a start by `roost.start_kernel` ÷ a plain start ≤ 0.12. Five starts at once, in
kernels per second, roost ÷ plain: ≥ 7.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from claims import Report, parser
from page_tables import LIFE, compare_with_plain

from roost.bench import starts
from roost.bench.runs import measure_sides, read_rounds
from roost.bench.sides import Side, read_sides
from roost.scheduler.errors import ConfigError

AT_ONCE = 5
AT_MOST = {"start": 0.14, "again": 0.17, "restart": 0.16, "stop": 1.0, starts.OF_PROGRAM: 0.12}
AT_LEAST = 7.0
"""The claimed ratio of the kernels per second in five starts at once, roost ÷ plain."""
TABLE = compare_with_plain(
    name="start",
    rows={
        **LIFE,
        "five at once": f"{AT_ONCE} at once",
        "the very first start, without a service and an agent": "first start",
        "a program's start: `roost.start_kernel` → result of the first code (plain: as above)": [
            "start/plain",
            f"{starts.OF_PROGRAM}/roost",
        ],
    },
)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    what = "an installed kernelspec of another provisioner, to measure as well"
    options.add_argument("--peer", metavar="KERNELSPEC", help=what)
    arguments = options.parse_args()
    rounds = read_rounds(arguments)

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        await starts.measure(report, sides, rounds=rounds, at_once=AT_ONCE)
        for stage, bound in AT_MOST.items():
            report.claim(f"{stage}: roost ÷ plain", at_most=bound)
        report.claim(f"{AT_ONCE} at once: roost ÷ plain", at_least=AT_LEAST)

    try:
        sides = read_sides({"backend": "local"}, ["plain", *filter(None, [arguments.peer])])
        report = Report("start", rounds=rounds, at_once=AT_ONCE, sides=[side.name for side in sides])
        return measure_sides(arguments, report, sides, measure)
    except ConfigError as problem:
        options.error(str(problem))


if __name__ == "__main__":
    sys.exit(main())
