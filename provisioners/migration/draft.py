"""The translation of one kernelspec while it is made."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from .old_kernelspec import OldKernelspec
from .sheet import DECIDE, TAKEN, Sheet
from .tables import MAKES_CONTAINERS
from .values import is_secret

_OLD_PATH = re.compile(
    r"python-?(2|3\.[0-9](?![0-9]))|\bpy(27|3[5-9])\b|spark-?[12](?![0-9])|py4j-0\.([0-9]\.|10\.[0-8](?![0-9]))",
    re.IGNORECASE,
)
"""A path of a Python before 3.10, or of a Spark before 3: roost's kernels and its agent need newer ones."""
_VARIABLE = re.compile(r"\$\{?(\w+)")
_FILLED = ("KERNEL_ID", "env")
"""Names that roost fills in, and the prefix of Spark's own `${env:NAME}`."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Draft(Sheet):
    """The new values, the report's lines, and what one part of the translation tells another."""

    old: OldKernelspec
    language: str
    """`python`, `r`, `scala` or another one; empty if nothing says it."""
    is_spark: bool = False
    keep_launcher: bool = False
    argv: list[str] = dataclasses.field(default_factory=list)
    env: dict[str, str] = dataclasses.field(default_factory=dict)
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def launcher_can_stay(self) -> bool:
        """True if the bridge can start the old launcher: it makes no container itself, and gets a public key."""
        command = self.old.command
        if command.form == "plain" or command.image or command.launcher in MAKES_CONTAINERS:
            return False
        texts = " ".join([*command.words, *self.old.env.values()])
        return all(place in texts for place in ("{response_address}", "{public_key}"))

    @property
    def launcher_stays(self) -> bool:
        """True if the bridge starts the old launcher."""
        return self.keep_launcher and self.launcher_can_stay

    def find_doubt(self, value: str) -> str:
        """Return a question about a text that stays as it was; empty if the text is right.

        Jupyter fills in `${NAME}` in `env` from the variables of its server, if it has them. On another machine, these
        are wrong.
        """
        if _OLD_PATH.search(value):
            return "it names a Python before 3.10 or a Spark before 3, which kernels of roost cannot use"
        found = {name for name in _VARIABLE.findall(value) if name not in _FILLED}
        if names := [name for name in sorted(found) if self.backend != "local" or name.startswith("KERNEL_")]:
            return f"nothing fills in {', '.join(names)} where the kernel runs: write the value"
        return ""

    def keep_variable(self, name: str, value: str, place: str) -> None:
        """Give a variable to the kernel, with its line. A variable of that name that is there already wins."""
        if name in self.env:
            self.say(place, TAKEN, "replaced by Spark's option of the same name")
            return
        self.env[name] = value
        if is_secret(name, value):
            question = "a secret in a kernelspec is readable by everybody who can read the file: move it"
            self.say(place, DECIDE, question, "it stays")
        elif doubt := self.find_doubt(value):
            self.say(place, DECIDE, doubt, "it stays")
        else:
            self.say(place, TAKEN, "")
