"""A translation while it is made: the new kernelspec's parts, and the report's lines so far."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from .command import MAKES_CONTAINERS, Command
from .kernel_file import OldKernelspec
from .report import Line, Outcome
from .secrets import is_secret, show


@dataclasses.dataclass(slots=True, kw_only=True)
class Draft:
    """The parts of the new kernelspec. `translate` passes it from one step to the next.

    `config` has roost's options and `options` those of the backend. `settings` are for `jupyter_roost_config`.
    """

    old: OldKernelspec
    command: Command
    backend: str
    language: str
    """`python`, `r` or `scala`; empty if nothing says it."""
    is_spark: bool = False
    keep_launcher: bool = False
    argv: list[str] = dataclasses.field(default_factory=list)
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    lines: list[Line] = dataclasses.field(default_factory=list)
    executor_image: str = ""
    kernel_class: str = ""
    """The class of ipykernel that the kernel uses; empty for its own."""
    start_mode: str = ""
    """When the old launcher made the context of Spark: `eager`, `lazy`, `none`; empty if nothing says it."""
    app_name: str = ""
    driver_memory_bytes: int = 0
    """Memory of the JVM of Spark's driver; 0 if nothing says it."""
    driver_overhead_bytes: int = 0
    driver_cores: float = 0

    def say(self, option: str, outcome: Outcome, text: str, default: str | None = None) -> None:
        """Add a line to the report. A word of a command in `option` may be a secret itself."""
        option = show("", option) if is_secret("", option) else option
        self.lines.append(Line(option, outcome, text, default))

    def allow(self, setting: str, value: str) -> None:
        """Add a value to a list of the backend's section, such as `allowed_namespaces`."""
        section = self.settings.setdefault(self.section, {})
        section[setting] = sorted({*section.get(setting, ()), value})

    def set_users(self, key: str, users: Iterable[str]) -> None:
        """Add users to the rule of this kernelspec. `key` is `allowed` or `denied`."""
        rules = self.settings.setdefault("RoostScheduler", {}).setdefault("kernelspec_users", {})
        rule = rules.setdefault(self.old.name.lower(), {})
        rule[key] = sorted({*rule.get(key, ()), *users})

    @property
    def section(self) -> str:
        """The name of the backend's section in a configuration file."""
        return f"Roost{self.backend.capitalize()}Backend"

    @property
    def launcher_can_stay(self) -> bool:
        """True if the bridge can start the old launcher.

        A launcher cannot stay if it makes the container itself, or gets no public key.
        """
        if self.command.form == "plain" or self.command.docker or self.command.launcher in MAKES_CONTAINERS:
            return False
        texts = " ".join([*self.command.argv, *self.old.env.values()])
        return all(place in texts for place in ("{response_address}", "{public_key}"))

    @property
    def launcher_stays(self) -> bool:
        """True if the bridge starts the old launcher."""
        return self.keep_launcher and self.launcher_can_stay

    @property
    def has_containers(self) -> bool:
        """True if the backend runs each kernel in a container with an image."""
        return self.backend in ("kubernetes", "docker")
