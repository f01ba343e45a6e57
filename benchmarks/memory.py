"""Memory of idle kernels on this machine: `roost bench density` with 20 kernels of each side, with a claim.

`bench/density.py` describes the figures. Claim: PSS after `1+1` ≤ 0.43 × plain, from Python 3.12 on ≤ 0.27 ×.
`all in` has no claim. Linux only (smaps_rollup).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from roost.bench import density
from roost.bench.report import Report, parser
from roost.bench.runs import measure_sides
from roost.bench.sides import Side, read_sides

SKIPPED = 77
AT_MOST = 0.27 if sys.version_info >= (3, 12) else 0.43
"""Preloaded objects are immortal from Python 3.12 on, so that kernels share more."""
LIMITS = density.Limits(kernels=density.FEW, free=0.1, latency_s=2.0)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 3, quick 1)")
    arguments = options.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        print("memory.py needs Linux: there is no /proc/self/smaps_rollup here.", file=sys.stderr)
        return SKIPPED
    rounds = arguments.rounds or (1 if arguments.quick else 3)

    async def measure(report: Report, sides: Sequence[Side]) -> None:
        await density.measure(report, sides, rounds=rounds, limits=LIMITS, packages=())
        if min(report.figure(f"kernels/{side.name}").min for side in sides) < density.FEW:
            report.notes.append(
                f"There was no room for {density.FEW} kernels of each side, so nothing is claimed."
            )
            return
        report.claim(f"PSS after {density.FIRST}: roost ÷ plain", at_most=AT_MOST)

    sides = read_sides({"backend": "local"}, ["plain"])
    report = Report("memory", rounds=rounds, kernels=density.FEW)
    return measure_sides(arguments, report, sides, measure)


if __name__ == "__main__":
    sys.exit(main())
