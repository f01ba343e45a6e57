"""What a kernelspec's Python on this machine can do."""

from __future__ import annotations

from roost.launchers.agent.interpreter_probe import ProbeResult as ProbeResult
from roost.launchers.agent.interpreter_probe import probe as probe
