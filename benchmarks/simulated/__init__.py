"""A simulated cluster for `scale.py`: real service and real messages, agents without kernels.

    scale.py ── roost's client ──> service ── backend.py ──> cluster.py: a process with the manager and the agents
                                      └─── CURVE, a socket per agent ────────┘

The service finds the backend like that of any other package, by an entry point. `install` installs this package.
"""

from __future__ import annotations

from pathlib import Path

from roost.scheduler.backends.spec import BackendSpec

NAME = "simulated"

SPEC = BackendSpec(
    name=NAME,
    settings="simulated.backend:RoostSimulatedBackend",
    create="simulated.backend:create",
)


def install(folder: Path) -> None:
    """Make this package one of `folder`, with the metadata whose entry point registers the simulated backend."""
    package = folder / "roost_simulated-0.dist-info"
    package.mkdir(parents=True)
    (folder / NAME).symlink_to(Path(__file__).resolve().parent)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: roost-simulated\nVersion: 0\n")
    (package / "entry_points.txt").write_text(f"[roost.backends]\n{NAME} = {NAME}:SPEC\n")
