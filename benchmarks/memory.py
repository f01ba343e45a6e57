"""Memory on this machine: `roost bench density`, and all processes of some users, with claims, roost ÷ plain.

further kernel    the PSS of each of 50 kernels after `1+1` ≤ 0.43, from Python 3.12 on ≤ 0.27
all in            all processes of a user, ten minutes after the last start: one kernel ≤ 2.0, three ≤ 1.2, ten ≤ 0.8;
                  twenty users with one kernel each have no claim

`bench/density.py` and `all_processes.py` describe the figures. Linux only (smaps_rollup).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import all_processes
from claims import SKIPPED, Report, parser
from page_tables import compare_with_plain

from roost.bench import density
from roost.bench.runs import measure_sides
from roost.bench.sides import Side, read_sides

AT_MOST = 0.27 if sys.version_info >= (3, 12) else 0.43
"""The claimed PSS of a further kernel, roost ÷ plain. From Python 3.12 on, kernels share more: objects are immortal."""
ALL_IN = {1: 2.0, 3: 1.2, 10: 0.8}
"""The claimed ratios of `all in`, by the number of one user's kernels."""
MANY = all_processes.Case(users=20, kernels=1)
REST_S, QUICK_REST_S = 600.0, 1.0
LIMITS = density.Limits(kernels=density.FEW, free=0.1, latency_s=2.0)
FURTHER = compare_with_plain(
    name="memory",
    rows={
        "PSS after `1+1`": "PSS after 1+1",
        "the same with its part of roost's own processes": "all in",
        "PSS after a completion": "PSS after a completion",
    },
    corner="memory of each of 50 kernels",
)
ALL_PROCESSES = compare_with_plain(
    name="memory-all-in",
    rows={
        "one user with one kernel": "all in, 1 user with 1 kernel",
        "one user with three kernels": "all in, 1 user with 3 kernels",
        "one user with ten kernels": "all in, 1 user with 10 kernels",
        "twenty users with one kernel each": "all in, 20 users with 1 kernel",
    },
    corner="all processes, for each user",
)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 3, quick 1)")
    arguments = options.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        print("memory.py needs Linux: there is no /proc/self/smaps_rollup here.", file=sys.stderr)
        return SKIPPED
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    rest_s = QUICK_REST_S if arguments.quick else REST_S

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        await density.measure(report, sides, rounds=rounds, limits=LIMITS, packages=())
        if min(report.figure(f"kernels/{side.name}").min for side in sides) < density.FEW:
            report.notes.append(
                f"There was no room for {density.FEW} kernels of each side, so nothing is claimed."
            )
        else:
            report.claim(f"PSS after {density.FIRST}: roost ÷ plain", at_most=AT_MOST)
        cases = {all_processes.Case(users=1, kernels=count): bound for count, bound in ALL_IN.items()}
        await all_processes.measure(report, sides, [*cases, MANY], rest_s)
        for case, bound in cases.items():
            report.claim(f"all in, {case}: roost ÷ plain", at_most=bound)

    sides = read_sides({"backend": "local"}, ["plain"])
    report = Report("memory", rounds=rounds, kernels=density.FEW, rest_s=rest_s)
    return measure_sides(arguments, report, sides, measure)


if __name__ == "__main__":
    sys.exit(main())
