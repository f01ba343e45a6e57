"""The sides of a comparison: roost on a backend, and the kernels that the user compares it with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.asynchronous.client import AsyncKernelClient

from roost.provisioners.kernel_connection import set_up_sockets
from roost.provisioners.request_options import split_pairs
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.cli.options import read_json
from roost.scheduler.client.client import Client, connect, disconnect
from roost.scheduler.client.service_restart import read_options, restart_service
from roost.scheduler.errors import ConfigError

from .world import PLAIN, ROOST, private_world, wait_until_forked, write_kernelspec

NONE = "none"
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a comparison: roost, plain Jupyter or another provisioner."""

    name: str
    """The name that figures show."""
    kernelspec: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """For roost, the config in its kernelspec. Empty for another provisioner."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """For roost, the settings of its backend, as in `roost.connect`. Empty for another provisioner."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the process in which another provisioner runs (peer_process.py)."""

    @property
    def is_roost(self) -> bool:
        return "backend" in self.config

    def connect(self) -> Client:
        """Return the client of this side's scheduler. Only for sides of roost."""
        return connect(self.config["backend"], **self.options)

    async def take_turn(self) -> None:
        """Let the service have this side's settings: a cluster has one service. Nothing happens if it has them."""
        if not self.is_roost:
            return
        client = self.connect()
        folder = client.service_folder()
        running = read_options(folder)
        if running is not None and _leave_address_out(running) != _leave_address_out(client.options):
            await asyncio.to_thread(restart_service, folder, client.backend, client.options)
            await client.service()  # connects, so that no figure has that time

    async def warm_up(self) -> bool:
        """Start the agents of all nodes and a zygote. False if kernels are not forked. Only for sides of roost.

        Repeat this after the turn of another side, as other settings may have replaced the agents.
        """
        await self.take_turn()
        await self.connect().up()
        if self.config.get("fork") is False or get_spec(self.config["backend"]).has_agent_per_kernel:
            return False
        return await wait_until_forked(
            self.kernelspec, backend=self.config["backend"], options=dict(self.options)
        )

    def prepare(self, client: AsyncKernelClient) -> None:
        """Set up a client before it connects, as roost's own clients are set up."""
        if self.is_roost:
            set_up_sockets(client.context)


def _leave_address_out(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "address"}


def read_sides(
    config: Mapping[str, Any], baselines: Sequence[str], options: Mapping[str, Any] | None = None
) -> list[Side]:
    """Return the side of roost, and one for each baseline. `options` are the backend's settings.

    A baseline is `plain`, the name of an installed kernelspec, or `roost:KEY=VALUE,...` with other settings of roost's
    kernelspec or backend. Raise `ConfigError` for a wrong baseline.
    """
    options = options or {}
    sides = [Side(name="roost", kernelspec="roost", config=config, options=options)]
    section = load_object(get_spec(config["backend"]).settings, "the backend's settings")
    settings = section.class_traits(config=True)
    for baseline in dict.fromkeys(baselines):
        if baseline == NONE:
            continue
        if baseline == "roost" or any(side.name == baseline for side in sides):
            raise ConfigError(f"--baseline {baseline} is the measured side itself: name another one.")
        if not baseline.startswith("roost:"):
            sides.append(Side(name=baseline, kernelspec=baseline))
            continue
        changes = split_pairs("--baseline", baseline.removeprefix("roost:").split(","), "roost:fork=false")
        of_backend = {key: read_json(text) for key, text in changes.items() if key in settings}
        of_kernelspec = {key: _TRUTH.get(text, text) for key, text in changes.items() if key not in settings}
        sides.append(
            Side(
                name=baseline,
                kernelspec=f"roost-{len(sides)}",
                config={**config, **of_kernelspec},
                options={**options, **of_backend},
            )
        )
    return sides


@contextmanager
def world(sides: Sequence[Side]) -> Iterator[Path]:
    """Create private folders with the kernelspecs of these sides. Raise `ConfigError` for an unknown kernelspec."""
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
