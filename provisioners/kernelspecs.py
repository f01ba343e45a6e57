"""Installs, lists, checks and removes roost's kernelspecs: copies of other kernelspecs with a request."""

from __future__ import annotations

import os
import re
import shutil
import string
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_core.paths import jupyter_data_dir

from roost.placement.model import Request
from roost.scheduler.backends.registry import get_spec
from roost.scheduler.backends.spec import DEFAULT_BACKEND, BackendSpec
from roost.scheduler.client.interpreter_probe import (
    MachineAnswer,
    ProbeResult,
    parse_ipykernel_command,
    probe,
    probe_elsewhere,
)
from roost.scheduler.client.service_checks import (
    Outlook,
    check_packages,
    check_policy,
    find_outlook,
    is_same_service,
)
from roost.scheduler.errors import BackendUnavailable, ConfigError, RoostError
from roost.scheduler.messages import Finding, format_names

from .encryption import check_wish
from .kernel_environment import check_patterns, check_variables, limit_gpus
from .kernel_json import PROVISIONER, find_provisioner, read_document
from .kernel_resources import list_resources, write_kernelspec
from .provisioner import RoostProvisioner
from .request_options import read_start_options
from .spark_mode import check_deploy_mode

_PLAIN = ("", "local-provisioner", PROVISIONER)
_ON_ROOST = " on roost"
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RoostKernelspec:
    """A kernelspec that uses the roost provisioner. `malformed` says why it cannot be read, or is empty."""

    name: str
    display_name: str
    language: str
    folder: str
    config: Mapping[str, Any]
    argv: tuple[str, ...]
    env: Mapping[str, str]
    malformed: str = ""


def install(
    source: str,
    *,
    name: str,
    config: Mapping[str, Any],
    display_name: str = "",
    prefix: str | None = None,
    may_replace: bool = False,
    is_checked: bool = True,
    python: str = "",
    check_on: Sequence[str] = (),
    report: Callable[[MachineAnswer], object] = lambda answer: None,
) -> tuple[RoostKernelspec, ProbeResult | None]:
    """Copy the kernelspec `source` as `name`; return the copy and the test of its Python (None if not tested).

    `prefix` is an installation prefix, or None for the user's own folder. `python` replaces the Python of the
    kernelspec. If `is_checked`, roost tests the kernelspec's Python and its policy. A backend with machines of its own
    tests it there: on those that `check_on` names, or on one, and `report` gets each answer. Pass False if the kernels
    run only on other machines. Raises `ConfigError`, and `BackendUnavailable` if none of these machines answers.
    """
    check_kernel_name(name)
    name = name.lower()
    specs = KernelSpecManager()
    spec = read_kernelspec(specs, source)
    config = {**_inherit(spec, config), **config}
    request = check_config(config, spec.env)
    check_variables(spec.env)
    backend, options = _find_scheduler(config)
    facts = get_spec(backend)
    if check_on and not facts.probe:
        raise ConfigError(
            f"the backend {backend} cannot test a Python on its machines: leave out --check-on."
        )
    if is_checked:
        _check_policy(config)
    provisioner = spec.metadata.get("kernel_provisioner", {}).get("provisioner_name", "")
    if provisioner not in _PLAIN:
        raise ConfigError(f"Kernelspec {source!r} uses the provisioner {provisioner!r}: choose a plain one.")
    check_deploy_mode(spec.argv, spec.env)
    if prefix == "":
        raise ConfigError("--prefix names no folder: give one, or use --user.")
    if prefix and "\0" in prefix:
        raise ConfigError(f"--prefix {prefix!r:.80} cannot be the name of a folder.")
    data = Path(prefix).absolute() / "share" / "jupyter" if prefix else Path(jupyter_data_dir())
    folder = data / "kernels" / name
    there = str(folder) if os.path.lexists(folder) else ""
    if prefix in (None, sys.prefix):  # Jupyter does not look for kernelspecs below another prefix
        there = specs.find_kernel_specs().get(name) or there
    if there and not may_replace:
        raise ConfigError(f"There is a kernelspec {name!r} in {there}: give another --name, or --replace.")
    argv = [_absolute(spec.argv[0]), *spec.argv[1:]] if spec.argv else []
    if python:
        argv = [_check_python(python, argv, facts), *argv[1:]]
    if not is_checked:
        probed = None
    elif facts.probe:
        command, own = fill_command(argv, spec.resource_dir), _fill(spec.env)
        probed = probe_elsewhere(command, own, request, backend, options, machines=check_on, report=report)
    else:
        probed = probe(fill_command(argv, spec.resource_dir), fill_environment(spec.env))
    if probed and probed.problem:
        raise ConfigError(probed.problem)
    metadata = {key: value for key, value in spec.metadata.items() if key != "kernel_provisioner"}
    if probed and probed.is_ipykernel:  # the installed ipykernel may be newer than its kernelspec
        metadata.pop("supported_encryption", None)
        metadata |= {"supported_encryption": ["curve"]} if probed.has_curve else {}
    metadata["kernel_provisioner"] = {"provisioner_name": PROVISIONER, "config": dict(config)}
    display_name = display_name or _choose_display_name(spec.display_name, name, request, backend)
    document = {**spec.to_dict(), "argv": argv, "display_name": display_name, "metadata": metadata}
    try:
        write_kernelspec(folder, document, list_resources(Path(spec.resource_dir)), make_way=_remove)
    except OSError as error:
        what = f"{folder} cannot be written ({error.strerror or error})"
        raise ConfigError(f"{what}: use --user, --sys-prefix or another --prefix.") from None
    return _to_kernelspec(name, folder, document), probed


def _inherit(spec: KernelSpec, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config that a copy keeps of a kernelspec of roost's: its request, and its options on one backend."""
    provisioner = spec.metadata.get("kernel_provisioner", {})
    own = provisioner.get("config") or {} if provisioner.get("provisioner_name") == PROVISIONER else {}
    is_same = own.get("backend", DEFAULT_BACKEND) == config.get("backend", DEFAULT_BACKEND)
    left_out = ("backend",) if is_same else ("backend", "backend_options", "options")
    return {name: value for name, value in own.items() if name not in left_out}


def check_kernel_name(name: str) -> None:
    """Raise `ConfigError` unless a new kernelspec can have this name."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r:.80} is not a valid kernel name: use letters, digits, '-', '_' and '.'.")
    if len(name) > _LONGEST_NAME:
        raise ConfigError(f"a kernel name of {len(name)} letters is too long: use at most {_LONGEST_NAME}.")


def _choose_display_name(source: str, name: str, request: Request, backend: str) -> str:
    """Return a title that no other kernelspec of roost's has, as far as request and backend tell them apart."""
    taken = {each.display_name for each in list_kernelspecs() if each.name != name}
    title, asks = source.partition(_ON_ROOST)[0] + _ON_ROOST, request.describe()
    titles = (title, f"{title}: {asks}", f"{title}, {backend}: {asks}")
    return next((each for each in titles if each not in taken), titles[-1])


def list_kernelspecs() -> list[RoostKernelspec]:
    """Return roost's kernelspecs, sorted by name. They include malformed kernelspecs that may be roost's."""
    found = []
    for name, folder in sorted(KernelSpecManager().find_kernel_specs().items()):
        try:
            document, malformed = read_document(folder)
        except OSError:  # missing, or not readable for this user
            continue
        if find_provisioner(document) == PROVISIONER:
            found.append(_to_kernelspec(name, Path(folder), document, malformed))
    return found


def remove(name: str) -> str:
    """Remove one of roost's kernelspecs and return its folder; raises `ConfigError`."""
    specs = KernelSpecManager()
    if name not in [spec.name for spec in list_kernelspecs()]:
        if name in specs.find_kernel_specs():
            raise ConfigError(f"Kernelspec {name!r} is not roost's: use `jupyter kernelspec remove {name}`.")
        raise ConfigError(f"There is no kernelspec {name!r}: `roost kernelspec list` shows roost's.")
    try:
        return str(specs.remove_kernel_spec(name))
    except OSError as error:
        raise ConfigError(f"{error.filename} could not be removed: {error.strerror}.") from None


def find_problems(*, silent: tuple[str, Mapping[str, Any]] | None = None) -> list[Finding]:
    """Return the findings about kernelspecs and the provisioner's registration, for `roost doctor`.

    `silent` has the backend and the options of a scheduler that does not answer. Its kernelspecs do not ask it again.
    """
    from importlib.metadata import entry_points

    found: list[Finding] = []
    if not entry_points(group="jupyter_client.kernel_provisioners", name=PROVISIONER):
        what = f"Jupyter in {sys.prefix} does not know the roost provisioner"
        found.append({"level": "error", "what": what, "do": f"install roost into {sys.prefix}"})
    specs = list_kernelspecs()
    unreachable: set[str] = set()
    undecided: dict[Outlook, list[str]] = {}
    for spec in specs:
        outlook, advice = _check(spec, silent=silent, unreachable=unreachable)
        if outlook.kind in ("not now", "not asked"):
            undecided.setdefault(outlook, []).append(spec.name)
        else:
            found.append(_report(spec, outlook))
        if advice and not (outlook.reason and advice.startswith(outlook.reason)):
            what, _, do = advice.rstrip(".").rpartition(": ")
            found.append({"level": "warning", "what": f"kernelspec {spec.name}: {what}", "do": do})
    found += [_report_undecided(names, outlook) for outlook, names in undecided.items()]
    if not specs:
        do = "run `roost kernelspec install --from python3 --name roost-python3`"
        found.append({"level": "warning", "what": "no kernelspec starts through roost", "do": do})
    return found


def fill_command(argv: Sequence[str], folder: str) -> list[str]:
    """Return the command of the kernelspec in `folder`, with what Jupyter puts in for names of folders."""
    return [part.replace("{resource_dir}", folder).replace("{prefix}", sys.prefix) for part in argv]


def fill_environment(env: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with a kernelspec's variables. `${NAME}` is replaced as Jupyter does."""
    return {**os.environ, **_fill(env)}


def _fill(env: Mapping[str, str]) -> dict[str, str]:
    return {key: string.Template(value).safe_substitute(os.environ) for key, value in env.items()}


def find_outlook_of(spec: RoostKernelspec) -> Outlook:
    """Return the outlook of a kernelspec: can its next kernel start? This may take a minute."""
    return _check(spec)[0]


def _report(spec: RoostKernelspec, outlook: Outlook) -> Finding:
    """Return the finding about a kernelspec that can start kernels, or never can, which alone is an error."""
    if outlook.kind == "starts":
        return {"level": "ok", "what": f"kernelspec {spec.name} can start kernels", "do": ""}
    change = f"change {spec.folder}/kernel.json, or run `roost kernelspec remove {spec.name}`"
    what = f"kernelspec {spec.name}: {outlook.reason}"
    return {"level": "error", "what": what, "do": outlook.do or change}


def _report_undecided(names: list[str], outlook: Outlook) -> Finding:
    """Return the finding about the kernelspecs with this outlook: they may be able to start kernels later."""
    is_known = outlook.kind == "not now"
    can = "can start no kernel now" if is_known else "may start kernels"
    which = f"kernelspec {names[0]}" if len(names) == 1 else f"kernelspecs {format_names(names)}"
    what = f"{which} {can}: {outlook.reason}"
    return {"level": "not now" if is_known else "not asked", "what": what, "do": outlook.do}


def _check(
    spec: RoostKernelspec,
    *,
    silent: tuple[str, Mapping[str, Any]] | None = None,
    unreachable: set[str] | None = None,
) -> tuple[Outlook, str]:
    """Return the outlook of a kernelspec, and a sentence of advice about its Python.

    The Python of a backend with machines of its own is tested there, unless `unreachable` is None or has the backend.
    A backend of which no machine answers is added to it.
    """
    if spec.malformed:
        return _never(spec.malformed), ""
    try:
        request = check_config(spec.config, spec.env)
        check_variables(spec.env)
        check_deploy_mode(spec.argv, spec.env)
        backend, options = _find_scheduler(spec.config)
        facts = get_spec(backend)
    except RoostError as error:
        return _never(error.user_message), ""
    try:
        check_packages(backend, options)
    except RoostError as missing:
        return _never(
            missing.user_message, "install it, or set ROOST_SERVICE_PYTHON to a Python that has it"
        ), ""
    is_tested = False
    if facts.probe:
        problem = ""
        advice, is_tested = _test_elsewhere(spec, request, unreachable)
    else:
        probed = probe(fill_command(spec.argv, spec.folder), fill_environment(spec.env))
        can_fork = spec.config.get("fork", True) and not facts.has_agent_per_kernel
        problem, advice = probed.problem, probed.why_not_forked if can_fork else ""
    if problem and facts.runs_on_this_machine:
        # This test may be wrong, and its kernels may run: nobody should remove the kernelspec for it.
        return _never(problem, f"if its kernels do not start, change {spec.folder}/kernel.json"), advice
    if silent is not None and is_same_service(silent, (backend, options)):
        reason = "nobody has asked the scheduler, which does not answer"
        return Outlook(kind="not asked", reason=reason, do="mend that first"), advice
    asked = find_outlook(
        request,
        backend,
        options,
        kernel_name=spec.name,
        changed_at=_read_change(spec.folder),
        is_tested=is_tested,
    )
    return asked, advice


def _test_elsewhere(
    spec: RoostKernelspec, request: Request, unreachable: set[str] | None
) -> tuple[str, bool]:
    """Test the Python of a kernelspec on one of its backend's machines, unless `unreachable` forbids it (`_check`).

    Return a sentence of advice, and whether kernels can start there. If not, another machine may still be fine.
    """
    backend, options = _find_scheduler(spec.config)
    if unreachable is None or backend in unreachable:
        return "", False
    try:
        command = fill_command(spec.argv, spec.folder)
        found = probe_elsewhere(command, _fill(spec.env), request, backend, options)
    except ConfigError as problem:
        return problem.user_message, False
    except BackendUnavailable:  # the findings about the cluster name these machines
        unreachable.add(backend)
        return "", False
    return found.why_not_forked if spec.config.get("fork", True) else "", True


def _never(sentence: str, do: str = "") -> Outlook:
    return Outlook(kind="never", reason=sentence.rstrip("."), do=do)


def _read_change(folder: str) -> float:
    """Return when the kernelspec was last changed, in seconds since the epoch; 0 if that cannot be read."""
    try:
        return Path(folder, "kernel.json").stat().st_mtime
    except OSError:
        return 0.0


def check_config(config: Mapping[str, Any], env: Mapping[str, str]) -> Request:
    """Return the request of a kernelspec with these options and variables.

    Raises `ConfigError` for the options and variables that a start would refuse.
    """
    provisioner = RoostProvisioner(**config)  # its traits check the types
    check_patterns(provisioner.environment)
    spec = get_spec(provisioner.backend)
    check_wish(provisioner.encrypt, spec.name if spec.requires_encryption else "")
    known = {name: value for name, value in env.items() if "$" not in value}  # Jupyter puts in other values
    request = read_start_options(config, known).request
    return limit_gpus(request, spec.name, fill_environment(env) if spec.runs_on_this_machine else known)


def _check_policy(config: Mapping[str, Any]) -> None:
    check_policy(config.get("policy") or "", *_find_scheduler(config))


def _find_scheduler(config: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the backend and its options, as `roost.connect` takes them."""
    return config.get("backend", DEFAULT_BACKEND), config.get("backend_options", {})


def read_kernelspec(specs: KernelSpecManager, name: str) -> KernelSpec:
    """Return an installed kernelspec. Raises `ConfigError` if it is missing, malformed or not readable."""
    folder, malformed = specs.find_kernel_specs().get(name.lower()), ""  # Jupyter ignores case
    if folder is not None:
        with suppress(OSError):  # Jupyter reports it, or finds the kernelspec elsewhere
            malformed = read_document(folder)[1]
    if malformed:
        raise ConfigError(malformed)
    try:
        return specs.get_kernel_spec(name)
    except NoSuchKernel:
        known = specs.find_kernel_specs()
        if name in known:
            raise ConfigError(f"Kernelspec {name!r} needs a provisioner that is not installed.") from None
        if not known:
            raise ConfigError(
                f"There is no kernelspec {name!r}, nor any other: run `pip install ipykernel`."
            ) from None
        raise ConfigError(
            f"There is no kernelspec {name!r}: choose one of {', '.join(sorted(known))}."
        ) from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"Kernelspec {name!r} cannot be read: {error}.") from None


def _absolute(executable: str) -> str:
    """Replace `python` by the Python that Jupyter runs on, as jupyter_client does."""
    own = {"python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info[:2])}
    return sys.executable if executable in own else executable


def _check_python(python: str, argv: Sequence[str], facts: BackendSpec) -> str:
    """Return the Python for a command that begins with another one. Raises `ConfigError`."""
    if parse_ipykernel_command(argv) is None:
        raise ConfigError("--python needs a kernelspec of ipykernel: name one with --from, such as python3.")
    is_name = facts.has_agent_per_kernel and "/" not in python
    if not (os.path.isabs(python) or is_name) or not python.isprintable():
        raise ConfigError(f"--python = {python!a:.200} is no whole path: begin it with /.")
    return python


def _remove(folder: Path) -> None:
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    elif os.path.lexists(folder):
        folder.unlink()


def _to_kernelspec(name: str, folder: Path, document: Any, malformed: str = "") -> RoostKernelspec:
    known = {} if malformed else document
    return RoostKernelspec(
        name=name,
        display_name=str(known.get("display_name", name)),
        language=str(known.get("language", "")),
        folder=str(folder),
        config=known.get("metadata", {}).get("kernel_provisioner", {}).get("config", {}),
        argv=tuple(known.get("argv", ())),
        env=known.get("env", {}),
        malformed=malformed,
    )
