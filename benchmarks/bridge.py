"""Launchers of other gateways behind roost's bridge on this machine, beside kernels without a launcher.

plain       plain Jupyter
executed    roost, which executes ipykernel's command: nothing is forked
gateway     the launcher of Enterprise Gateway behind the bridge
provisioners    the launcher of Gateway Provisioners behind the bridge. It also encrypts its own side

start       start_kernel() called → first reply, with five channels open
interrupt   interrupt_kernel() called → the reply of the cell that slept
restart     restart_kernel() called → first reply
round trip  a cell sent → its reply
stop        shutdown_kernel() called → returned. The kernel may end by itself, as when a notebook's tab is closed

Claims: a stop of a launcher takes ≤ 3 s. pip downloads the launchers; without them the script ends with 77.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from claims import SKIPPED, Report, parser
from page_tables import PageTable

from roost.bench.kernel import BenchKernel, NoAnswer
from roost.bench.report import take_turns
from roost.bench.runs import Measurement, read_rounds, run
from roost.bench.sides import Side
from roost.bench.world import PLAIN, ROOST, private_world, write_kernelspec

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from kit.jupyter.odd_launcher import bridge_command
from kit.jupyter.real_launchers import KINDS, build_command, library, why_not
from roost.scheduler.client.client import disconnect

LOCAL = {"backend": "local", "fork": False}
SIDES = (
    Side(name="plain", kernelspec="plain"),
    *(Side(name=name, kernelspec=name, config=LOCAL) for name in ("executed", *KINDS)),
)
STOP_MS = 3000.0
TABLE = PageTable(
    name="bridge",
    columns={
        "plain Jupyter": "{}/plain",
        "roost, executed": "{}/executed",
        "Enterprise Gateway's launcher": "{}/gateway",
        "Gateway Provisioners' launcher": "{}/provisioners",
    },
    rows={
        "start → first `execute_reply`": "start",
        "interrupt → reply of the cell that slept": "interrupt",
        "restart → first `execute_reply`": "restart",
        "round trip": "round trip",
        "stop, as a notebook asks for it": "stop",
    },
    has_picture=False,
)


def write_bridge(folder: Path, kind: str) -> None:
    """Write the kernelspec of a launcher of this kind, as `roost migrate --keep-launcher` does."""
    write_kernelspec(folder, ROOST, LOCAL)
    file = folder / "kernel.json"
    document = json.loads(file.read_text())
    document |= {"argv": bridge_command(build_command(kind)), "env": {"PYTHONPATH": str(library())}}
    file.write_text(json.dumps(document))


async def run_life(side: Side) -> dict[str, float]:
    """Run one kernel from its start to its end. Return milliseconds by stage. Raises `NoAnswer`."""
    kernel = BenchKernel(side)
    try:
        took = {"start": (await kernel.start())["start"]}
        took["interrupt"] = await kernel.interrupt()
        took["restart"] = await kernel.restart()
        took["round trip"] = await kernel.execute("1+1")
        took["stop"] = await kernel.stop(is_polite=True)
        return took
    finally:
        await kernel.stop()


async def measure(report: Report, rounds: int) -> None:
    by_name = {side.name: side for side in SIDES}
    for name, is_warm in take_turns("kernels", list(by_name), rounds=rounds):
        try:
            took = await run_life(by_name[name])
        except NoAnswer as problem:
            report.count_failure(name, str(problem))
            continue
        for stage, value in took.items():
            if is_warm:
                report.add(f"{stage}/{name}", value, "ms")
    for kind in KINDS:
        report.claim(f"stop/{kind}", at_most=STOP_MS)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    arguments = options.parse_args()
    if reason := why_not():
        print(reason, file=sys.stderr)
        return SKIPPED
    rounds = read_rounds(arguments)
    report = Report("the bridge", rounds=rounds, sides=[side.name for side in SIDES])

    async def measurement() -> None:
        try:
            await measure(report, rounds)
        finally:
            disconnect()

    @contextmanager
    def prepare() -> Iterator[Measurement]:
        with private_world({"plain": PLAIN}) as root:
            kernels = root / "jupyter_path" / "kernels"
            write_kernelspec(kernels / "executed", ROOST, LOCAL)
            for kind in KINDS:
                write_bridge(kernels / kind, kind)
            yield measurement

    return run(arguments, report, prepare())


if __name__ == "__main__":
    sys.exit(main())
