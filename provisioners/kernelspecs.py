"""Kernelspecs that start through roost: a wrapped copy of one that exists, with what its kernels ask for."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import string
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_core.paths import jupyter_data_dir

from roost.scheduler.client.interpreter_probe import ProbeResult, probe
from roost.scheduler.client.policy_check import check_policy
from roost.scheduler.errors import ConfigError, RoostError
from roost.scheduler.service.operations import BACKENDS, check_backend

from .encryption import WISHES
from .kernel_environment import check_patterns
from .request_options import read_wish

PROVISIONER = "roost"
_PLAIN = ("", "local-provisioner", PROVISIONER)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoostKernelspec:
    """A kernelspec of roost's. `folder` holds its kernel.json; `config` is what its kernels ask for.

    `malformed` says in one sentence why Jupyter or roost cannot read it; what cannot be read is then empty.
    """

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
) -> tuple[RoostKernelspec, ProbeResult | None]:
    """Wrap the kernelspec `source` as `name`; raises `ConfigError` and then has changed nothing.

    `prefix`: an installation prefix, or None for the user's own folder. The environment is asked what it can
    do, and one that starts none is refused, unless `is_checked` is false (its kernels run elsewhere). So is the
    scheduler, where a policy is named that is not shipped.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{name!r} is no kernel name: use letters, digits, '-', '_' and, inside, '.'.")
    name = name.lower()
    check_config(config)
    if is_checked:
        _check_policy(config)
    specs = KernelSpecManager()
    spec = _read(specs, source)
    provisioner = spec.metadata.get("kernel_provisioner", {}).get("provisioner_name", "")
    if provisioner not in _PLAIN:
        raise ConfigError(f"Kernelspec {source!r} starts through {provisioner!r} already: wrap a plain one.")
    folder = _kernels_folder(prefix) / name
    there = specs.find_kernel_specs().get(name) or (str(folder) if folder.exists() else "")
    if there and not may_replace:
        raise ConfigError(f"There is a kernelspec {name!r} in {there}: give another --name, or --replace.")
    argv = [_absolute(spec.argv[0]), *spec.argv[1:]] if spec.argv else []
    found = probe(argv, environment(spec.env)) if is_checked else None
    if found and found.problem:
        raise ConfigError(found.problem)
    metadata = {key: value for key, value in spec.metadata.items() if key != "kernel_provisioner"}
    if found and found.is_ipykernel:  # what the specification says may be older than what is installed
        metadata.pop("supported_encryption", None)
        metadata |= {"supported_encryption": ["curve"]} if found.has_curve else {}
    metadata["kernel_provisioner"] = {"provisioner_name": PROVISIONER, "config": dict(config)}
    made = {
        **spec.to_dict(),
        "argv": argv,
        "display_name": display_name or f"{spec.display_name} on roost",
        "metadata": metadata,
    }
    _write(folder, made, Path(spec.resource_dir))
    return _to_kernelspec(name, folder, made), found


def list_kernelspecs() -> list[RoostKernelspec]:
    """All kernelspecs that start through roost, by name, and those of which nobody can tell."""
    found = []
    for name, folder in sorted(KernelSpecManager().find_kernel_specs().items()):
        try:
            document, malformed = read_document(folder)
        except OSError:  # not there, or not for this user
            continue
        if _may_be_roosts(document):
            found.append(_to_kernelspec(name, Path(folder), document, malformed))
    return found


def remove(name: str) -> str:
    """Remove a kernelspec of roost's and return the folder it was in; raises `ConfigError`."""
    ours = {spec.name: spec for spec in list_kernelspecs()}
    if name not in ours:
        others = KernelSpecManager().find_kernel_specs()
        if name in others:
            raise ConfigError(f"Kernelspec {name!r} is not roost's: `jupyter kernelspec remove {name}`.")
        raise ConfigError(f"There is no kernelspec {name!r}: `roost kernelspec list` shows roost's.")
    folder = ours[name].folder
    try:
        if os.path.islink(folder):
            os.remove(folder)
        else:
            shutil.rmtree(folder)
    except OSError as error:
        raise ConfigError(f"{folder} could not be removed: {error.strerror}.") from None
    return folder


def find_problems() -> list[dict[str, str]]:
    """What `roost doctor` says of kernelspecs and of the provisioner's registration."""
    from importlib.metadata import entry_points

    found = []
    if not entry_points(group="jupyter_client.kernel_provisioners", name=PROVISIONER):
        found.append(
            {
                "level": "error",
                "what": f"Jupyter in {sys.prefix} does not know the provisioner roost",
                "do": f"install roost into that environment, {sys.prefix}",
            }
        )
    specs = list_kernelspecs()
    for spec in specs:
        problem = find_problem(spec)
        what, do = f"kernelspec {spec.name} can start kernels", ""
        if problem:
            what = f"kernelspec {spec.name}: {problem.rstrip('.')}"
            do = f"mend {spec.folder}/kernel.json or what it names, or `roost kernelspec remove {spec.name}`"
        found.append({"level": "error" if problem else "ok", "what": what, "do": do})
    if not specs:
        do = "roost kernelspec install --from python3 --name roost-python3"
        found.append({"level": "warning", "what": "no kernelspec starts through roost", "do": do})
    return found


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and a kernelspec's own, in which `${NAME}` is filled in as Jupyter does."""
    own = {key: string.Template(value).safe_substitute(os.environ) for key, value in env.items()}
    return {**os.environ, **own}


def find_problem(spec: RoostKernelspec) -> str:
    """Why a kernelspec starts no kernels, in one sentence, or an empty text. Its Python is asked: up to 30 s.

    So is its scheduler, where it names a placement policy that is not shipped: up to 30 s more.
    """
    if spec.malformed:
        return spec.malformed
    try:
        check_config(spec.config)
        _check_policy(spec.config)
    except RoostError as error:
        return error.user_message
    return probe(spec.argv, environment(spec.env)).problem


def check_config(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for options that a start would refuse, whatever the scheduler then says."""
    from .provisioner import RoostProvisioner  # late: Jupyter's part of roost, which lists do not need

    provisioner = RoostProvisioner(**config)  # its traits are the types of the options
    check_backend(provisioner.backend)
    check_patterns(provisioner.environment)
    if provisioner.encrypt not in WISHES:
        raise ConfigError(
            f"encrypt = {provisioner.encrypt!r:.40} is unknown: it is one of {', '.join(WISHES)}."
        )
    read_wish(config, {})


def _check_policy(config: Mapping[str, Any]) -> None:
    options = config.get("backend_options", {})
    check_policy(config.get("policy") or "", config.get("backend", BACKENDS[0]), options)


def read_document(folder: str | Path) -> tuple[Any, str]:
    """A kernel.json as it is, and why it can start no kernel or an empty text; raises `OSError`."""
    path = Path(folder) / "kernel.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return None, f"{path} is not JSON: {error}."
    wrong = _wrong(document)
    return document, f"In {path} {wrong}." if wrong else ""


def _wrong(document: Any) -> str:
    """What in a kernel.json has not the form that Jupyter or roost expects, or an empty text."""
    if not isinstance(document, dict):
        return "there is no table"
    argv, env, metadata = (
        document.get(key, empty) for key, empty in (("argv", []), ("env", {}), ("metadata", {}))
    )
    if not isinstance(argv, list) or not argv or not all(isinstance(part, str) for part in argv):
        return "argv is not a list of texts, or empty"
    if not isinstance(env, dict) or not all(isinstance(value, str) for value in env.values()):
        return "env is not a table of names and texts"
    if not isinstance(metadata, dict):
        return "metadata is not a table"
    own = metadata.get("kernel_provisioner", {})
    if not isinstance(own, dict):
        return "metadata.kernel_provisioner is not a table"
    if not isinstance(own.get("config", {}), dict):
        return "metadata.kernel_provisioner.config is not a table"
    return ""


def _may_be_roosts(document: Any) -> bool:
    """Whether a kernel.json names roost's provisioner, or is too broken to say whose it is."""
    metadata = document.get("metadata", {}) if isinstance(document, dict) else None
    if not isinstance(metadata, dict):
        return True
    own = metadata.get("kernel_provisioner", {})
    return (own.get("provisioner_name") if isinstance(own, dict) else own) == PROVISIONER


def _read(specs: KernelSpecManager, name: str) -> KernelSpec:
    check_form(specs, name)
    try:
        return specs.get_kernel_spec(name)
    except NoSuchKernel:
        known = specs.find_kernel_specs()
        if name in known:
            raise ConfigError(
                f"Kernelspec {name!r} needs a kernel provisioner that is not installed."
            ) from None
        names = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"There is no kernelspec {name!r} to wrap; there are: {names}.") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"Kernelspec {name!r} cannot be read: {error}.") from None


def check_form(specs: KernelSpecManager, name: str) -> None:
    """Raise `ConfigError` for a kernelspec that Jupyter could not read; one that is not there is not looked at."""
    folder = specs.find_kernel_specs().get(name.lower())  # as Jupyter looks for it
    malformed = ""
    if folder is not None:
        with contextlib.suppress(OSError):  # Jupyter says it, or has the kernelspec from elsewhere
            malformed = read_document(folder)[1]
    if malformed:
        raise ConfigError(malformed)


def _absolute(executable: str) -> str:
    """`python` means the Python that Jupyter runs on, as for jupyter_client; others are left as they are."""
    own = {"python", f"python{sys.version_info[0]}", "python{}.{}".format(*sys.version_info[:2])}
    return sys.executable if executable in own else executable


def _kernels_folder(prefix: str | None) -> Path:
    if prefix is None:
        return Path(jupyter_data_dir()) / "kernels"
    return Path(prefix).absolute() / "share" / "jupyter" / "kernels"


def _write(folder: Path, document: Mapping[str, Any], resources: Path) -> None:
    """Put the kernelspec in place as a whole, logos and other resources included."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            if resources.is_dir():
                shutil.copytree(
                    resources, made, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
                )
            made.chmod(0o755)
            (made / "kernel.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
            elif folder.exists():
                folder.unlink()
            made.rename(folder)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror}): use --user, --sys-prefix or another --prefix."
        ) from None


def _to_kernelspec(name: str, folder: Path, document: Any, malformed: str = "") -> RoostKernelspec:
    if malformed:
        return RoostKernelspec(
            name=name,
            display_name=name,
            language="",
            folder=str(folder),
            config={},
            argv=(),
            env={},
            malformed=malformed,
        )
    return RoostKernelspec(
        name=name,
        display_name=str(document.get("display_name", name)),
        language=str(document.get("language", "")),
        folder=str(folder),
        config=document["metadata"]["kernel_provisioner"].get("config", {}),
        argv=tuple(document.get("argv", ())),
        env=document.get("env", {}),
    )
