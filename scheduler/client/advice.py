"""Completes the `roost` commands in texts for people, so that each command works as typed.

The scheduler, its errors and placement name commands such as `roost drain NODE --off`. Only a client knows the backend
and the options that lead to the same scheduler. Each text therefore passes through the client's `Advice`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND
from roost.scheduler.errors import ConfigError, RoostError

E = TypeVar("E", bound=RoostError)
T = TypeVar("T")

WITHOUT_BACKEND = frozenset({"bench", "down", "gateway", "kernelspec", "machine", "migrate"})
"""The commands that no backend is added to: they ask no scheduler."""
_COMMAND = re.compile(r"`roost ([\w-]+)([^`]*)`")


@dataclass(frozen=True, slots=True)
class Advice:
    """The commands for the scheduler of one backend and its options.

    >>> Advice("ray", {}).complete("run `roost drain n --off` to use it again")
    'run `roost drain n --off --backend ray` to use it again'
    """

    backend: str
    options: Mapping[str, Any]

    def complete(self, text: str) -> str:
        """Return the text with the backend and its options in each command in backticks. May be repeated."""
        if "`roost " not in text or not (given := self._list_options()):
            return text

        from shlex import join  # here, because each application imports this module

        def add(found: re.Match[str]) -> str:
            command, arguments = found.groups()
            if command in WITHOUT_BACKEND or "--backend" in arguments:
                return found[0]
            return f"`roost {command}{arguments} {join(given)}`"

        return _COMMAND.sub(add, text)

    def complete_all(self, document: T) -> T:
        """Return a JSON value with all its texts completed."""
        if isinstance(document, str):
            return self.complete(document)  # type: ignore[return-value]
        if isinstance(document, dict):
            return {key: self.complete_all(value) for key, value in document.items()}  # type: ignore[return-value]
        if isinstance(document, list):
            return [self.complete_all(value) for value in document]  # type: ignore[return-value]
        return document

    def complete_error(self, error: E) -> E:
        """Complete the message of an error, and the remedies of its decision. Return the error."""
        error.user_message = self.complete(error.user_message)
        error.args = (error.user_message,)
        if "decision" in error.fields:
            error.fields["decision"] = self.complete_all(error.fields["decision"])
        return error

    def write(self, *words: str) -> str:
        """Return the command of these words in backticks: `write("doctor")` is the command that asks this scheduler."""
        from shlex import join

        return self.complete(f"`{join(['roost', *words])}`")

    def _list_options(self) -> list[str]:
        """Return the words that name the scheduler; none for the default backend without options."""
        options = {
            name: value for name, value in self.options.items() if not self._is_in_environment(name, value)
        }
        return _name_scheduler(self.backend, options)

    def _is_in_environment(self, name: str, value: object) -> bool:
        """True if a command reads this option from the environment, as this process does."""
        try:
            variable = get_spec(self.backend).address_variable
        except ConfigError:
            return False
        return name == "address" and bool(variable) and os.environ.get(variable, "").strip() == value


def write_command(command: str, backend: str, options: Mapping[str, Any]) -> str:
    """Return the command line for the scheduler of this backend with these options, whatever the environment has.

    >>> write_command("restart-service", "ray", {"address": "head:6379"})
    'roost restart-service --backend ray --backend-option address=head:6379'
    """
    from shlex import join

    return join(["roost", command, *_name_scheduler(backend, options)])


def _name_scheduler(backend: str, options: Mapping[str, Any]) -> list[str]:
    """Return the arguments of a command for this scheduler."""
    words = [] if backend == DEFAULT_BACKEND else ["--backend", backend]
    for name, value in options.items():
        words += ["--backend-option", f"{name}={_write_value(value)}"]
    return words


def _write_value(value: object) -> str:
    """Return an option's value as the command line reads it: JSON, or a text that is no JSON."""
    if isinstance(value, str):
        try:
            json.loads(value)
        except (ValueError, RecursionError):
            return value
    return json.dumps(value, default=str)
