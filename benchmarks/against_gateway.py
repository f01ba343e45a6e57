"""Kernel starts on this machine against Gateway Provisioners, as `roost bench start` measures them.

`bench/starts.py` describes the figures. Five kernels at once, the first start and restarts are left out. With
ipykernel 7, a kernel of Gateway Provisioners takes half a minute to end for a restart. Four sides take turns:

roost               roost
plain               plain Jupyter
gateway             Gateway Provisioners on this machine (`DistributedProvisioner` on localhost, which needs no ssh)
gateway, 0.05 s     the same with GP_POLL_INTERVAL=0.05, ten times as often as by default

Each side has its defaults otherwise. Claims, of medians: start ≤ 0.08 × Gateway Provisioners, ≤ 0.12 × with 0.05 s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from claims import SKIPPED, Report, parser
from page_tables import LIFE, PLAIN_JUPYTER, PageTable

from roost.bench import starts
from roost.bench.runs import measure_sides, read_rounds
from roost.bench.sides import Side, read_sides
from roost.scheduler.errors import ConfigError

GATEWAY = "gateway"
POLL_INTERVAL_S = 0.05
FAST = f"{GATEWAY}, {POLL_INTERVAL_S} s"
AT_MOST = {GATEWAY: 0.08, FAST: 0.12}
"""The claimed ratios of a start."""
_INSTALL_S = 60
_TITLE, _FAST_TITLE = "Gateway Provisioners", f"the same, GP_POLL_INTERVAL={POLL_INTERVAL_S}"
TABLE = PageTable(
    name="against_gateway",
    columns={
        PLAIN_JUPYTER: "{}/plain",
        "roost": "{}/roost",
        _TITLE: f"{{}}/{GATEWAY}",
        _FAST_TITLE: f"{{}}/{FAST}",
    },
    rows={label: stage for label, stage in LIFE.items() if stage != "restart"},
    ratios={
        f"roost ÷ {_TITLE}": ("roost", _TITLE),
        f"roost ÷ the same, {POLL_INTERVAL_S}": ("roost", _FAST_TITLE),
    },
    packages=("gateway_provisioners",),
)


def install(folder: Path) -> None:
    """Install the kernelspec with the tool of Gateway Provisioners. `folder` becomes a Jupyter data folder."""
    tool = (sys.executable, "-m", "gateway_provisioners.cli.ssh_specapp", "install")
    # Gateway Provisioners refuses root by default.
    options = ("--user", f"--kernel-name={GATEWAY}", "--unauthorized-users=nobody", "--log-level=WARN")
    environment = {**os.environ, "JUPYTER_DATA_DIR": str(folder)}
    subprocess.run((*tool, *options), env=environment, check=True, timeout=_INSTALL_S)


def make_sides(folder: Path) -> list[Side]:
    """Return the four sides. The logs and connection files that Gateway Provisioners leaves are in `folder`."""
    python = Path(sys.executable).parent
    variables = {
        "PATH": f"{python}{os.pathsep}{os.environ.get('PATH', os.defpath)}",  # its kernelspec starts `python`
        "GP_KERNEL_LOG_DIR": str(folder),
        "TMPDIR": str(folder),
    }
    fast = {**variables, "GP_POLL_INTERVAL": str(POLL_INTERVAL_S)}
    return [
        *read_sides({"backend": "local"}, ["plain"]),
        Side(name=GATEWAY, kernelspec=GATEWAY, variables=variables),
        Side(name=FAST, kernelspec=GATEWAY, variables=fast),
    ]


async def measure(report: Report, sides: Sequence[Side], *, rounds: int) -> None:
    await starts.measure_lives(report, sides, rounds=rounds, restarts=False)
    for name, bound in AT_MOST.items():
        report.claim(f"start: roost ÷ {name}", at_most=bound)


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, help="repetitions of each side (default 20, quick 3)")
    arguments = options.parse_args()
    rounds = read_rounds(arguments)
    if find_spec("gateway_provisioners") is None:
        print("Gateway Provisioners is not installed: pip install gateway_provisioners.", file=sys.stderr)
        return SKIPPED

    try:
        with tempfile.TemporaryDirectory(prefix="rb-", dir="/tmp") as name:
            install(Path(name))
            os.environ["JUPYTER_PATH"] = name
            sides = make_sides(Path(name))
            report = Report(
                "against Gateway Provisioners", rounds=rounds, sides=[side.name for side in sides]
            )
            return measure_sides(arguments, report, sides, partial(measure, rounds=rounds))
    except ConfigError as problem:
        options.error(str(problem))


if __name__ == "__main__":
    sys.exit(main())
