"""What became of each option of an old kernelspec or of its server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

Outcome = Literal["translated", "kept", "decision", "dropped", "none"]
"""What became of an option.

translated   the new kernelspec says the same in roost's words
kept         it stands in the new kernelspec as it was
decision     a person has to decide; until then the new kernelspec has a default
dropped      roost needs nothing in its place
none         roost has no equivalent
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A line of the report: what became of one option.

    `option` is the option's place, such as `metadata.process_proxy.config.image_name`, `argv --queue` or
    `env KERNEL_CPUS`. `text` is a sentence without secrets: the equivalent, the decision, or the reason.
    `default` is what the new kernelspec has until a person decides.
    """

    option: str
    outcome: Outcome
    text: str
    default: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Translation:
    """The translation of one kernelspec.

    `kernel_json` is the new file's content, or None if the kernelspec is refused; `refusal` then says why, in one
    sentence. `config` is what `jupyter_roost_config` must say for it, as {"RoostScheduler": {"denied_users": [...]}}.
    `waits_for` names the backend that must be installed or does not exist yet, as "docker", or is empty.
    """

    name: str
    backend: str
    kernel_json: Mapping[str, Any] | None
    lines: tuple[Line, ...] = ()
    config: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    refusal: str = ""
    waits_for: str = ""

    @property
    def needs_decision(self) -> bool:
        """True if a person has to decide something before the kernelspec is right."""
        return any(line.outcome == "decision" for line in self.lines)
