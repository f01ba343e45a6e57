"""`BackendSpec`: the facts about a backend that roost needs before it imports the backend's cluster library.

Every part of roost may import this module: it needs the standard library only.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from roost.launchers.agent.interpreter_probe import ProbeResult
    from roost.placement.model import Request

DEFAULT_BACKEND = "local"
"""The backend of kernelspecs and calls that name none."""

_KINDS: dict[type, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list of texts",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestOption:
    """An option that a single kernel can set for its backend."""

    name: str
    """The option's name in a kernelspec and on the command line."""
    kind: type
    """`str`, `int`, `float`, `bool`, or `list` for a list of texts."""
    help: str
    """The meaning of the option, as a clause, for error texts and help."""
    variable: str = ""
    """The `KERNEL_*` variable that sets the option; empty: none does."""

    def check(self, value: Any) -> None:
        """Raise `ConfigError` if the value has the wrong type. A whole number is also a number."""
        kinds = (int, float) if self.kind is float else (self.kind,)
        is_kind = isinstance(value, kinds) and (self.kind is bool or not isinstance(value, bool))
        if not is_kind or (self.kind is list and not all(isinstance(item, str) for item in value)):
            raise _error(f"{self.name} = {value!r:.40} must be {_KINDS[self.kind]} ({self.help}).")

    def read(self, value: Any) -> Any:
        """Return the value, converted if it is text from a command line or a variable.

        A list is text in JSON, or its items with commas between them.

        Raises `ConfigError` like `check`.
        """
        if isinstance(value, str) and self.kind is list and not value.lstrip().startswith("["):
            value = [item.strip() for item in value.split(",") if item.strip()]
        elif isinstance(value, str) and self.kind is not str:
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                pass  # `check` names the option and the text
        self.check(value)
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonQuestion:
    """The question whether the kernels of a kernelspec can start on a backend's machines."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """The kernelspec's own variables, with Jupyter's replacements."""
    request: Request
    """The kernelspec's request. Only machines with its labels are asked."""
    machines: tuple[str, ...] = ()
    """The machines to ask; empty: the first one that answers, or all of them."""
    asks_all: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineAnswer:
    """What one machine has answered to a `PythonQuestion`."""

    machine: str
    took_s: float
    result: ProbeResult | None = None
    """What the Python there can do; None if the machine was not reached."""
    problem: str = ""
    """Why kernels cannot start there, or why the machine was not reached: a sentence. Empty if they can."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendSpec:
    """A backend's name, and where its parts are.

    >>> spec = BackendSpec(name="demo", settings="demo.settings:RoostDemoBackend", create="demo.backend:create")
    >>> spec.section
    'RoostDemoBackend'
    """

    name: str
    """The backend's name in kernelspecs, in `roost.connect` and on the command line."""
    settings: str
    """The backend's section of the configuration as `module:Class`: a `Section` called `Roost<Name>Backend`.

    Its traits are the options of `roost.connect`.
    """
    create: str
    """A function as `module:function`. It gets the settings and a `BackendContext`, and returns the `Backend`.

    Only the service imports its module.
    """
    address_variable: str = ""
    """The environment variable that names the cluster if the setting `address` is empty.

    A backend without that setting has none.
    """
    cluster: str = ""
    """A function as `module:function`, which gets the settings and returns the address of the cluster that they name.

    Each client calls it to find the service of the cluster: all names of one cluster should give the same text. It asks
    this machine alone, blocks for milliseconds, and imports no cluster library. It raises `ConfigError` or
    `BackendUnavailable` if the settings name no cluster. Empty: the option `address` and the variable alone count.
    """
    runs_on_this_machine: bool = False
    """True if kernels share the application's files, network interfaces and Python.

    They then get its whole environment, with its PATH.
    """
    follows_visible_gpus: bool = False
    """True if a kernel gets only GPUs that its variables name, such as CUDA_VISIBLE_DEVICES."""
    runs_as_its_user: bool = False
    """True if kernels run as the user of the service, so that a gateway can start them as the person who asks."""
    separates_kernels: bool = False
    """True if each kernel has a container, in which it reaches neither the files nor the processes of other kernels."""
    has_agent_per_kernel: bool = False
    """True if each kernel has an agent of its own, so that no kernel is forked from a warm process.

    A bare `python` in a kernelspec is then found by the PATH of the pod's first process.
    """
    check: str = ""
    """A function as `module:function`, which roost calls for a new kernelspec, with the settings and a request.

    It blocks for seconds at most. It raises `ConfigError` if the cluster would start no such kernel, and
    `BackendUnavailable` if the cluster does not answer. Empty: none.
    """
    probe: str = ""
    """A function as `module:function`, which tests a kernelspec's Python on the machines of the backend.

    It gets the settings, a `PythonQuestion`, and a function to call with each `MachineAnswer`. It blocks until all
    answers are there. Empty: the Python of this machine is tested, which has the same path there.
    """
    packages: tuple[str, ...] = ()
    """The modules of other packages that the backend imports. If one is missing, `roost doctor` and each start say so.

    roost's extra of the backend's name installs them.
    """
    requires_encryption: bool = False
    """True if a kernel that cannot encrypt its channels is refused, whatever its kernelspec wishes."""
    request_options: tuple[RequestOption, ...] = ()
    """The options that one kernel can set. `claim` finds them in `lease.request.options`."""

    @property
    def section(self) -> str:
        """The name of the backend's section in a configuration file, without `c.`."""
        return self.settings.rpartition(":")[2]

    def check_packages(self) -> None:
        """Raise `ConfigError` if a package that the backend needs is not installed. Nothing is imported."""
        for name in self.packages:
            if find_spec(name) is None:
                raise _error(
                    f"the backend {self.name} needs the package {name}: {describe_extra(self.name)}."
                )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Raise `ConfigError` for an unknown option of a request, or for a value of the wrong type."""
        for name, value in options.items():
            self._option(name).check(value)

    def read_options(self, options: Mapping[str, Any], variables: Mapping[str, str]) -> dict[str, Any]:
        """Return the options of a request.

        A `KERNEL_*` variable in `variables` overrides the option that it sets.

        Values may be text. Raises `ConfigError` like `check_options`.
        """
        given = {name: self._option(name).read(value) for name, value in options.items() if value is not None}
        for option in self.request_options:
            if option.variable and (text := variables.get(option.variable, "").strip()):
                given[option.name] = option.read(text)
        return given

    def _option(self, name: str) -> RequestOption:
        for option in self.request_options:
            if option.name == name:
                return option
        known = [option.name for option in self.request_options]
        if not known:
            raise _error(f"the backend {self.name} has no options for requests: leave out {name!r:.40}.")
        raise _error(describe_unknown(f"request option of the backend {self.name}", name, known))


def describe_unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Return one sentence about an unknown name. It suggests the most similar known name, or lists all known names."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    guess = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}."
    shown = str(name) if str(name).isprintable() else ascii(name)
    return f"there is no {what} named {shown[:40]}: {guess}"


def describe_extra(name: str) -> str:
    """Return how to install an extra of roost's, as a clause."""
    return f"install roost with the extra `{name}` (in a checkout: `pip install '.[{name}]'`)"


def _error(sentence: str) -> Exception:
    from roost.scheduler.errors import (
        ConfigError,  # late: errors import zmq, which `roost --help` does not need
    )

    return ConfigError(sentence)
