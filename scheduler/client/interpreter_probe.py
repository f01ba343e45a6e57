"""What a kernelspec's Python can do: on this machine, or on the machines of a backend where its kernels run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from roost.launchers.agent.interpreter_probe import ProbeResult as ProbeResult
from roost.launchers.agent.interpreter_probe import probe as probe
from roost.launchers.agent.warm.kernel_command import parse_ipykernel_command as parse_ipykernel_command
from roost.placement.model import Request
from roost.scheduler.backends.registry import get_spec, load_object
from roost.scheduler.backends.spec import MachineAnswer as MachineAnswer
from roost.scheduler.backends.spec import PythonQuestion
from roost.scheduler.errors import BackendUnavailable, ConfigError
from roost.scheduler.messages import format_names

from .service_folder import with_address

ALL = "all"
"""The name that stands for all machines of a backend."""


def probe_elsewhere(
    argv: Sequence[str],
    env: Mapping[str, str],
    request: Request,
    backend: str,
    options: Mapping[str, Any],
    *,
    machines: Sequence[str] = (),
    report: Callable[[MachineAnswer], object] = lambda answer: None,
) -> ProbeResult:
    """Test the Python of a kernel command on a backend's machines, and report each answer.

    `machines` are names, or `all`; empty: the first machine that answers. `env` are the kernelspec's own variables.
    Blocks for up to a minute or two on a slow host. Raises `ConfigError` if a machine that answered cannot start such
    kernels, and `BackendUnavailable` if none has answered.
    """
    # Imported here, because Jupyter needs no settings of the service.
    from roost.scheduler.config.files import load_settings

    spec = get_spec(backend)
    found: list[MachineAnswer] = []

    def note(answer: MachineAnswer) -> None:
        result = answer.result
        if spec.requires_encryption and result and not (result.problem or can_encrypt(result)):
            problem = (
                f"{_describe_old(result)}, and the backend {backend} wants encrypted kernels: {_REMEDY}."
            )
            answer = replace(answer, problem=problem, result=replace(result, problem=problem))
        found.append(answer)
        report(answer)

    asks_all = ALL in machines
    question = PythonQuestion(
        argv=tuple(argv),
        env=env,
        request=request,
        machines=() if asks_all else tuple(machines),
        asks_all=asks_all,
    )
    _, settings = load_settings(backend, with_address(backend, options))
    load_object(spec.probe, f"the test of the backend {backend}")(settings, question, note)
    return _join(found)


def can_encrypt(result: ProbeResult) -> bool:
    """True unless the kernel is an ipykernel that cannot encrypt its channels. Nothing is known about others."""
    return result.has_curve or not result.is_ipykernel


_REMEDY = "install ipykernel 7.3 or newer there"


def _describe_old(result: ProbeResult) -> str:
    return f"ipykernel {result.ipykernel} of {result.executable} cannot encrypt its channels"


def _join(found: Sequence[MachineAnswer]) -> ProbeResult:
    """Return what the Pythons of all machines that have answered can do. Raises as `probe_elsewhere`."""
    reached = [(answer.machine, answer.result) for answer in found if answer.result is not None]
    failing = [answer for answer in found if answer.result is not None and answer.problem]
    if not reached:
        first = found[0]
        others = f" ({len(found) - 1} more are out of reach)" if len(found) > 1 else ""
        raise BackendUnavailable(
            f"no machine has answered, so nobody has tested the Python: {first.problem.rstrip('.')}{others}."
        )
    if len(failing) == 1:
        raise ConfigError(f"{failing[0].machine}: {failing[0].problem}")
    if failing:
        names = format_names([answer.machine for answer in failing])
        raise ConfigError(
            f"these kernels cannot start on {names}: mend that, or test another machine with --check-on."
        )
    results = [result for _, result in reached]
    return replace(
        results[0],
        has_curve=all(result.has_curve for result in results),
        can_fork=all(result.can_fork for result in results),
        why_not_forked=next((result.why_not_forked for result in results if result.why_not_forked), ""),
    )
