"""The sides of a comparison: roost on a backend, and what the user compares it with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient

from roost.provisioners.kernel_connection import reconnect_soon
from roost.provisioners.request_options import split_pairs
from roost.scheduler.client.client import Client, connect, disconnect
from roost.scheduler.errors import ConfigError

from .world import PLAIN, ROOST, private_world, write_kernelspec

NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side. `config` is that of roost's kernelspec; it is empty for others. `name` is how figures call the side."""

    name: str
    kernelspec: str
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_roost(self) -> bool:
        return "backend" in self.config

    def connect(self) -> Client:
        """Return the client of this side's scheduler. Only for sides of roost."""
        return connect(self.config["backend"], **self.config.get("backend_options", {}))

    def prepare(self, client: AsyncKernelClient) -> None:
        """Set up a client before it connects, as roost's own clients are set up."""
        if self.is_roost:
            reconnect_soon(client.context)


def read_sides(config: Mapping[str, Any], baselines: Sequence[str]) -> list[Side]:
    """Return the side of roost, and one for each baseline; raises `ConfigError`.

    A baseline is `plain`, the name of an installed kernelspec, or `roost:KEY=VALUE,...` with other settings of roost.
    """
    sides = [Side(name="roost", kernelspec="roost", config=config)]
    for baseline in dict.fromkeys(baselines):
        if baseline == NONE:
            continue
        if baseline == "roost" or any(side.name == baseline for side in sides):
            raise ConfigError(f"--baseline {baseline} is the measured side itself: name another one.")
        if not baseline.startswith("roost:"):
            sides.append(Side(name=baseline, kernelspec=baseline))
            continue
        changes = split_pairs("--baseline", baseline.removeprefix("roost:").split(","), "roost:fork=never")
        name = f"roost-{len(sides)}"
        sides.append(Side(name=baseline, kernelspec=name, config={**config, **changes}))
    return sides


@contextmanager
def world(sides: Sequence[Side]) -> Iterator[Path]:
    """Create a private world with the kernelspecs of these sides; raises `ConfigError` for an unknown kernelspec."""
    installed = [side.kernelspec for side in sides if not side.is_roost and side.name != "plain"]
    try:
        opened = private_world({"plain": PLAIN}, installed=installed, keeps_config=True)
        with opened as root:
            for side in sides:
                if side.is_roost:
                    folder = root / "jupyter_path" / "kernels" / side.kernelspec
                    write_kernelspec(folder, ROOST, side.config)
            try:
                yield root
            finally:
                disconnect()
    except KeyError as missing:
        raise ConfigError(
            f"there is no kernelspec {missing}: `jupyter kernelspec list` shows the installed ones."
        ) from None
