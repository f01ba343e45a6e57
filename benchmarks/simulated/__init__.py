"""A simulated cluster for `roost bench scale`: real service and real messages, agents without kernels.

    scale.py ── roost's client ──> service ── backend.py ──> cluster.py: a process with the manager and the agents
                                      └─── CURVE, a socket per agent ────────┘

The service finds the backend like that of any other package, by an entry point. `install` writes it.
"""

from __future__ import annotations

from pathlib import Path

from roost.scheduler.backends.spec import BackendSpec

NAME = "simulated"

SPEC = BackendSpec(
    name=NAME,
    settings="roost.bench.simulated.backend:RoostSimulatedBackend",
    create="roost.bench.simulated.backend:create",
)


def install(folder: Path) -> None:
    """Write the metadata of a fake package into `folder`. Its entry point registers the simulated backend."""
    package = folder / "roost_simulated-0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: roost-simulated\nVersion: 0\n")
    (package / "entry_points.txt").write_text(f"[roost.backends]\n{NAME} = roost.bench.simulated:SPEC\n")
