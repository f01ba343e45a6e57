"""The lines of a report and the new values, while an old kernelspec or its server is translated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from .values import is_secret, show

Kind = Literal["please decide", "taken over", "not needed"]
"""The fate of an option.

please decide   a person has to decide; until then the new kernelspec has a default
taken over      the new kernelspec says the same
not needed      roost needs nothing in its place
"""
DECIDE: Kind = "please decide"
TAKEN: Kind = "taken over"
NEEDLESS: Kind = "not needed"


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """A line of the report: what became of one option.

    `option` is the option's place, such as `metadata.process_proxy.config.image_name`, `argv --queue` or
    `env KERNEL_CPUS`. `text` is a clause without secrets, or empty for an option that stays as it is. `default` is
    what the new kernelspec has until a person decides. `details` are the lines of a file to compare.
    """

    option: str
    kind: Kind
    text: str
    default: str = ""
    details: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Translation:
    """The translation of one kernelspec.

    `kernel_json` is the new file's content, or None if the kernelspec is refused; `refusal` then says why, in one
    sentence. `settings` is what `jupyter_roost_config` must say for it, by section.
    """

    name: str
    backend: str
    kernel_json: Mapping[str, Any] | None
    lines: tuple[Line, ...] = ()
    settings: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    refusal: str = ""

    @property
    def needs_decision(self) -> bool:
        """True if a person has to decide something before the kernelspec is right."""
        return any(line.kind == DECIDE for line in self.lines)


class Undecided(Exception):
    """A value that a person has to look at: the question, as a clause. `value` is used until then; None: nothing."""

    def __init__(self, question: str, value: Any = None) -> None:
        super().__init__(question)
        self.value = value


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """The equivalent of an old option.

    `target` is an option of a kernelspec (`cpus`), one of its backend (`options.image`), a setting (`c.Section.name`),
    or a fact for the rest of the translation (`~mode`). `read` returns the new value, or None if nothing is needed. It
    raises `Undecided`, and `ValueError` for a wrong value. `backends` are those that have the option; empty: all.
    `allowed_by` is the setting of the backend that must allow the value. If the target has another value already, that
    one counts; with `conflict`, a person has to decide. `note` is a clause for the report.
    """

    target: str
    read: Callable[[Any], Any]
    backends: tuple[str, ...] = ()
    allowed_by: str = ""
    conflict: str = ""
    note: str = ""


@dataclasses.dataclass(slots=True)
class Sheet:
    """The lines so far, and the new values by their targets. The first value of a target counts."""

    backend: str = ""
    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    lines: list[Line] = dataclasses.field(default_factory=list)
    places: dict[str, str] = dataclasses.field(default_factory=dict)
    """The old option from which the value of each target comes."""

    def say(self, option: str, kind: Kind, text: str, default: str = "", details: Sequence[str] = ()) -> None:
        """Add a line to the report. A word of a command in `option` may be a secret itself."""
        option = show("", option) if is_secret("", option) else option
        self.lines.append(Line(option, kind, text, default, tuple(details)))

    def take(self, option: Option, value: Any, place: str) -> None:
        """Take an option over, with its line. `place` is where it stands."""
        target, question = option.target, ""
        name = target.rpartition(".")[2].strip("~")
        try:
            new = option.read(value)
        except Undecided as problem:
            question, new = str(problem), problem.value
        except (ValueError, TypeError, OverflowError):  # its text may have the value, which may be a secret
            question, new = f"roost cannot read its value: set {target}", None
        old = self.values.get(target, new)
        if option.backends and self.backend and self.backend not in option.backends:
            self.say(place, NEEDLESS, f"the backend {self.backend} has nothing like it")
        elif new in (None, "", []):
            self.say(
                place, *((DECIDE, question, "not set") if question else (NEEDLESS, "it says nothing new"))
            )
        elif isinstance(new, str) and "$" in new and not target.startswith("c."):
            self.say(place, DECIDE, f"{target} cannot name a variable: give a value", "not set")
        elif old != new and option.conflict:
            self.say(
                place, DECIDE, f"{option.conflict}: {show(name, old)} or {show(name, new)}", show(name, old)
            )
        elif target in self.values:
            earlier = self.places.get(target, "another option")
            self.say(place, NEEDLESS, f"{earlier} {'says the same' if old == new else 'wins'}")
        else:
            self.values[target], self.places[target] = new, place
            shown = f"{target} = {show(name, new)}" if not target.startswith("~") else show(name, str(new))
            if option.allowed_by:
                self.allow(option.allowed_by, new)
                shown += f", which c.{self.section}.{option.allowed_by} must have"
            shown += f"; {option.note}" if option.note else ""
            self.say(place, *((DECIDE, question, shown) if question else (TAKEN, shown)))

    def allow(self, setting: str, value: str) -> None:
        """Add a value to a list of the backend's settings, such as `allowed_namespaces`."""
        target = f"c.{self.section}.{setting}"
        self.values[target] = sorted({*self.values.get(target, ()), value})

    @property
    def section(self) -> str:
        """The name of the backend's section in a configuration file."""
        return f"Roost{self.backend.capitalize()}Backend"

    def list_settings(self) -> dict[str, dict[str, Any]]:
        """Return the settings among the values, by section and name."""
        found: dict[str, dict[str, Any]] = {}
        for target, value in self.values.items():
            if target.startswith("c."):
                _, section, name = target.split(".", 2)
                found.setdefault(section, {})[name] = value
        return found
